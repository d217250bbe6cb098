"""The second pass: near-duplicates out, test sets out, families to their sides. Knows the sifted dialogues by their place.

What is dropped or kept apart is compared text by text; MinHash only says what to compare. That no held-out dialogue nearly
repeats a training one is proved by a search that misses none (`overlap`), and what MinHash missed is put right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data import dedup, overlap
from llmkit.data.cleaning import SIDES, Sifting
from llmkit.data.near import Families
from llmkit.data.record import Record
from llmkit.data.sieve import excerpt
from llmkit.data.split import TRAIN, Shares, deal
from llmkit.data.store import Store

NEAR, TEST_SETS = "near duplicates", "test sets"
CLUSTERS = 10  # largest groups of near-duplicates that are shown, and members of each
_DROPPED = 255
_AT_ONCE = 1024  # dialogues whose texts are in memory


class TestSet(NamedTuple):
    """What an evaluation set asks, text by text, and the line each stands on."""

    label: str
    texts: list[str]
    lines: list[int]


@dataclass
class Arranged:
    """`sides`: TRAIN, VALID or TEST for each place, or 255 where it was dropped; the rest is for the report."""

    sides: NDArray[np.uint8]
    clusters: list[dict[str, object]] = field(default_factory=list)
    families: int = 0
    moved: int = 0
    strata: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def places(self, side: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.sides == side)


class Arranger:
    """Works on one finished first pass."""

    def __init__(self, sifting: Sifting, store: Store) -> None:
        self._sifting, self._store = sifting, store
        self.result = Arranged(np.full(len(store), TRAIN, dtype=np.uint8))

    def drop_near(self, threshold: float) -> None:
        """Of dialogues near one another the first stays."""
        keys = _joined(self._sifting.near)
        groups: dict[int, list[dedup.Near]] = {}
        for found in dedup.near_duplicates(keys, self._store.shingles(dedup.WHOLE), threshold):
            detail = f"{found.similarity:.2f} like {self._store.id(found.like)}"
            self._drop(found.place, NEAR, "near_duplicate", detail)
            groups.setdefault(found.like, []).append(found)
        largest = sorted(groups, key=lambda place: (-len(groups[place]), place))[:CLUSTERS]
        self.result.clusters = [self._cluster(place, groups[place]) for place in largest]

    def keep_out(self, test_set: TestSet, threshold: float) -> None:
        """Drop whatever asks nearly what a test set asks, or asks and answers it."""
        index = overlap.Index(test_set.texts, threshold)
        for places in _parts(np.flatnonzero(self.result.sides != _DROPPED)):
            found: dict[int, overlap.Overlap] = {}
            records = [self._store.record(place) for place in places]
            # A question may stand anywhere in a dialogue.
            asked = [(left, text) for left, record in enumerate(records) for text in _asked(record)]
            for one in index.overlaps([text for _, text in asked]):
                found.setdefault(asked[one.left][0], one)
            for left, one in sorted(found.items()):
                detail = f"{one.similarity:.2f} like {test_set.label}:{test_set.lines[one.right]}"
                self._drop(places[left], TEST_SETS, "in_test_set", detail)

    def deal(self, shares: Shares, *, near: float, seed: int) -> None:
        """Give every family a side, and prove that no held-out dialogue is near one in train."""
        dropped = self.result.sides == _DROPPED
        found = Families(len(self._store))
        for view in dedup.VIEWS:
            keys = _joined(self._sifting.views[view])
            keys[dropped] = 0
            dedup.join_families(found, keys, self._store.shingles(view), near)
        families = {group[0]: group for group in found.groups() if not dropped[group[0]]}
        # What was no one's relative when it came has a place of its own in the deal, also where a later one tied it to another.
        openers = [place for place in np.flatnonzero(~dropped).tolist() if not found.tied[place]]
        groups = [families.get(place, []) for place in openers]
        names = {code: name for name, code in self._sifting.names.items()}
        codes = np.concatenate(self._sifting.strata)
        strata = [names[int(codes[place])] for place in openers]
        for number, side in deal(groups, strata, shares=shares, seed=seed).items():
            self.result.sides[groups[number]] = side
        self.result.families = len(families)
        self._mend(found, near)
        for place in np.flatnonzero(~dropped).tolist():
            counts = self.result.strata.setdefault(names[int(codes[place])], [0, 0, 0])
            counts[self.result.sides[place]] += 1

    def _mend(self, found: Families, near: float) -> None:
        """Move to train each family that a pair MinHash missed ties to it, until an exact search finds no such pair."""
        sides = self.result.sides
        held = [int(place) for place in np.flatnonzero((sides != TRAIN) & (sides != _DROPPED))]
        family: dict[int, list[int]] = {}
        for place in held:
            family.setdefault(found.root(place), []).append(place)
        indexes = {view: overlap.Index(self._store.texts(view, held), near) for view in dedup.VIEWS}
        asked = self.result.places(TRAIN)
        while len(asked):
            leaking: set[int] = set()
            for places in _parts(asked):
                for view, index in indexes.items():
                    leaking.update(held[one.right] for one in index.overlaps(self._store.texts(view, places)))
            asked = np.array(
                [
                    member
                    for root in sorted({found.root(place) for place in leaking if sides[place] != TRAIN})
                    for member in family[root]
                ],
                dtype=np.int64,
            )
            sides[asked] = TRAIN
            self.result.moved += len(asked)

    def write(self, out: Path, seed: int) -> None:
        """train.jsonl in the order of the sources; valid and test shuffled by the seed, so that their beginning is a sample."""
        for side, name in enumerate(SIDES):
            places = self.result.places(side)
            if side != TRAIN:
                ranks = [blake2b(f"{seed}:{self._store.id(place)}".encode(), digest_size=8).digest() for place in places]
                places = places[sorted(range(len(places)), key=ranks.__getitem__)]
            self._store.copy(places, out / f"{name}.jsonl")
            self._sifting.outcome.sides[name] = len(places)
        paired = np.concatenate(self._sifting.paired)
        self._sifting.outcome.with_rejected = int(paired[self.result.sides != _DROPPED].sum())

    def _drop(self, place: int, rule: str, reason: str, detail: str) -> None:
        self.result.sides[place] = _DROPPED
        self._sifting.reject(rule, reason, detail, self._store.line(place))

    def _cluster(self, place: int, members: Sequence[dedup.Near]) -> dict[str, object]:
        shown = [
            {"id": self._store.id(one.place), "source": self._store.record(one.place).source, "similarity": one.similarity}
            for one in members[:CLUSTERS]
        ]
        text = excerpt(self._store.record(place).messages)
        return {"size": len(members) + 1, "kept": self._store.id(place), "text": text, "members": shown}


def _asked(record: Record) -> list[str]:
    """Each message of the user, and with its answer; all the user's words, and everything said."""
    messages = record.messages
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    alone = [messages[place]["content"] for place in places]
    answered = [messages[place]["content"] + messages[place + 1]["content"] for place in places if place + 1 < len(messages)]
    return [*alone, *answered, dedup.view(record, "user"), dedup.view(record, "dialogue")]


def _joined(parts: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.uint32)


def _parts(places: NDArray[np.int64]) -> Iterator[list[int]]:
    for start in range(0, len(places), _AT_ONCE):
        yield places[start : start + _AT_ONCE].tolist()
