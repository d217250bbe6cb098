"""Which dialogues say nearly the same: near-duplicates to drop, families to keep together. Knows texts and MinHash bands.

Families are joined in any of three views: everything said, all the user said, all the assistant said. So no question or
answer of one family nearly repeats one of another. A system message is in none of the views: a prompt that a whole data
set shares would make one family of it all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.near import Families, Numbers, bands, mix, shingled, signatures, similarity
from llmkit.data.record import Record

VIEWS: dict[str, tuple[str, ...]] = {"dialogue": ("user", "assistant"), "user": ("user",), "assistant": ("assistant",)}
WHOLE = "whole"  # with the system message and a rejected answer: another persona, another pair is no duplicate
_AT_ONCE = 512  # texts whose signatures are made together: what fits a processor's cache
_REPRESENTATIVES = 64  # of a bucket that a later text is compared with
_ALL_PAIRS_UP_TO = 32  # members of a bucket that are each compared with all before them
_TRIES = 256  # comparisons for one text

Keys = NDArray[np.uint32]


class Near(NamedTuple):
    """Text `place` is `similarity` (0–1) like the earlier text `like`."""

    place: int
    like: int
    similarity: float


def view(record: Record, name: str) -> str:
    """All that the roles of a view say, the user's words before the assistant's; `WHOLE` is what `near_duplicates` compares."""
    if name == WHOLE:
        return view(record, "system") + view(record, "dialogue") + (record.rejected or "")
    roles = VIEWS.get(name, (name,))
    return "".join([message["content"] for role in roles for message in record.messages if message["role"] == role])


def band_keys(texts: Sequence[str], threshold: float) -> Keys:
    """(texts, bands): texts near one another share a key in some column, all but one pair in a thousand; zeros for no text."""
    parts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
    found = [bands(signatures(shingled(part), len(part)), threshold) for part in parts]
    return np.concatenate(found) if found else bands(signatures(shingled([]), 0), threshold)


def near_duplicates(keys: Keys, shingles_of: Callable[[int], Numbers], threshold: float) -> Iterator[Near]:
    """In order, each text that is near an earlier one which is kept: verified exactly, never dropped on an estimate.

    `shingles_of(place)` gives a text's shingles, ascending and distinct.
    """
    buckets: dict[tuple[int, int], list[int]] = {}
    for place in _crowd(keys):
        row = list(enumerate(keys[place].tolist()))
        mine = shingles_of(place)
        found = None
        for other in _rivals(row, buckets):
            alike = similarity(mine, shingles_of(other))
            if alike >= threshold:
                found = Near(place, other, alike)
                break
        if found:
            yield found
            continue
        for bucket in row:
            buckets.setdefault(bucket, []).append(place)


def join_families(found: Families, keys: Keys, shingles_of: Callable[[int], Numbers], threshold: float) -> None:
    """Join in `found` all that are near in this view: equal signatures at once, the others once verified."""
    chosen = _one_of_each(found, keys)
    buckets: dict[tuple[int, int], list[int]] = {}
    for index in _crowd(keys[chosen]):
        place = int(chosen[index])
        row = list(enumerate(keys[place].tolist()))
        for other in _rivals(row, buckets):
            # Of one family by way of a later text is not yet tied to an earlier one.
            unknown = not found.tied[place] or found.root(other) != found.root(place)
            if unknown and similarity(shingles_of(place), shingles_of(other)) >= threshold:
                found.join(other, place)
        for bucket in row:
            members = buckets.setdefault(bucket, [])
            # Past the first few, a text whose family stands here already is spoken for.
            if len(members) < _ALL_PAIRS_UP_TO or all(
                found.root(other) != found.root(place) for other in members[-_REPRESENTATIVES:]
            ):
                members.append(place)


def _one_of_each(found: Families, keys: Keys) -> NDArray[np.int64]:
    """Places of the first of each different row; the others with the same row are joined to it."""
    code = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.T:
        code = mix(code ^ column)
    some = np.flatnonzero(keys.any(axis=1))
    _, first, inverse = np.unique(code[some], return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(some)))
    for index in repeated.tolist():
        found.join(int(some[first[inverse[index]]]), int(some[index]))
    return np.sort(some[first])


def _crowd(keys: Keys) -> list[int]:
    """Places that share a band with another; the others are near to nothing."""
    shared = np.zeros(len(keys), dtype=bool)
    for column in keys.T:
        order = np.argsort(column)
        equal = column[order[1:]] == column[order[:-1]]
        shared[order[1:][equal]] = True
        shared[order[:-1][equal]] = True
    return np.flatnonzero(shared & keys.any(axis=1)).tolist()


def _rivals(row: Sequence[tuple[int, int]], buckets: dict[tuple[int, int], list[int]]) -> list[int]:
    """Earlier places to compare with, those that share the most bands first."""
    shared: dict[int, int] = {}
    for bucket in row:
        for other in buckets.get(bucket, ())[-_REPRESENTATIVES:]:
            shared[other] = shared.get(other, 0) + 1
    return sorted(shared, key=lambda other: (-shared[other], other))[:_TRIES]
