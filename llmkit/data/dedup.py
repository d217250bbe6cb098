"""Which dialogues say the same: exactly (`exact_key`) or nearly (`families`). Knows text; nothing of files or splits.

Near means a Jaccard similarity of character 3-shingles at or above a threshold, over normalised text. Two dialogues
belong to one family when they are near in any of three views: everything said, all the user said, all the assistant
said. So no question or answer of one family nearly repeats one of another. A system message is in none of the views:
a prompt that a whole data set shares would make one family of it all.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from llmkit.data.near import Families, near_families, near_pairs_across
from llmkit.data.record import Record

VIEWS: dict[str, tuple[str, ...]] = {"dialogue": ("user", "assistant"), "user": ("user",), "assistant": ("assistant",)}
_NOISE = re.compile(r"[\W_]+")


class Leak(NamedTuple):
    """Two records on different sides that are near in a view: their places in the two lists, and how near (0–1)."""

    left: int
    right: int
    view: str
    similarity: float


def exact_key(record: Record) -> bytes:
    """16 bytes that are equal for dialogues equal but for case and white space; roles and a rejected answer count."""
    texts = [message["role"] + " " + message["content"] for message in record.messages]
    if record.rejected is not None:
        texts.append("rejected " + record.rejected)
    # NUL is no white space: it stays where one text ends, whatever white space ends it.
    said = " ".join(" \0 ".join(texts).lower().split())
    return blake2b(said.encode(), digest_size=16).digest()


def normalise(text: str) -> str:
    """Lower-case letters, digits and Han only; of a text that has none of these, what is not white space."""
    lower = text.lower()
    return _NOISE.sub("", lower) or "".join(lower.split())


def view(record: Record, roles: Iterable[str]) -> str:
    """All that `roles` say in a dialogue, normalised turn by turn; a space keeps turns apart."""
    return " ".join([normalise(message["content"]) for message in record.messages if message["role"] in roles])


def families(records: Sequence[Record], threshold: float) -> Families:
    """Families of records near-duplicate in any view, found by MinHash and verified exactly.

    MinHash misses a pair right at the threshold about once in ten thousand; `leaks` is exact.
    """
    found = Families(len(records))
    for roles in VIEWS.values():
        places = _places(records, roles)
        texts = sorted(places)
        for group in near_families(texts, threshold).groups():
            members = [index for text in group for index in places[texts[text]]]
            for other in members[1:]:
                found.join(members[0], other)
    return found


def leaks(left: Sequence[Record], right: Sequence[Record], threshold: float) -> Iterator[Leak]:
    """Every pair of different texts, one from each side, that is near in a view: exact, and so slower than `families`.

    Of records that share a text the first stands for all.
    """
    for name, roles in VIEWS.items():
        here, there = _places(left, roles), _places(right, roles)
        ours, theirs = sorted(here), sorted(there)
        for first, second, similarity in near_pairs_across(ours, theirs, threshold):
            yield Leak(here[ours[first]][0], there[theirs[second]][0], name, similarity)


def _places(records: Sequence[Record], roles: tuple[str, ...]) -> dict[str, list[int]]:
    """Each text of a view → the records that have it; a record without such a text is left out."""
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        text = view(record, roles)
        if text.strip():
            places.setdefault(text, []).append(index)
    return places
