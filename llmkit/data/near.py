"""Which texts are nearly equal: MinHash to find them, shingles to be sure. Knows strings and numbers; nothing of records.

Near is Jaccard similarity of the sets of character 3-shingles of normalised text, at or above a threshold. Three code
points fit into one 64-bit number, so a shingle *is* that number and no two shingles share one. Signatures are made by one
permutation hashing with optimal densification (Li et al. 2012, arXiv 1208.1259; Shrivastava 2017, arXiv 1703.04664): every
shingle is hashed once and the smallest hash of each of 128 bins kept. Banding then finds candidates (Broder 1997;
Leskovec et al., Mining of Massive Datasets, ch. 3).
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHINGLE = 3
BINS = 128
_BITS = 21  # of a code point
_LETTERS = 0x32400  # no letter or digit stands beyond this code point
_EMPTY = np.uint32(0xFFFFFFFF)
_DRAWS = 64  # that an empty bin makes for a filled one before it takes the nearest
_MISS = 1e-3  # chance to miss one pair right at the threshold that decides the length of a band

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]


class Shingled(NamedTuple):
    """Shingles of many texts in one array: `tokens` (n,), and the text that each belongs to, ascending: `owner` (n,)."""

    tokens: Numbers
    owner: Places


def normalise(text: str) -> str:
    """Lower-case letters, digits and Han only; of a text that has none of these, what is not white space."""
    points = _letters(_points(text))
    return points.astype("<u4").tobytes().decode("utf-32-le") if len(points) else "".join(text.lower().split())


def shingles(text: str) -> frozenset[str]:
    """The set of a text's 3-character windows; a shorter text is its own only shingle."""
    if len(text) <= SHINGLE:
        return frozenset((text,))
    return frozenset([text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|, 0 … 1."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def shingled(texts: Sequence[str]) -> Shingled:
    """The shingles of many texts, with repetitions; a text without a letter or digit has none.

    Raises:
        nothing: any text is welcome.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    points = _points("".join(texts))
    points = _table()[np.minimum(points, _LETTERS)]
    keep = points != 0
    owner = np.repeat(np.arange(len(texts)), lengths)[keep]
    return _windows(points[keep].astype(np.uint64), owner)


def _windows(points: Numbers, owner: Places) -> Shingled:
    """Windows of three points of one owner; an owner of one or two points has one window of what there is."""
    size = len(points)
    after = np.zeros(size + 2, dtype=np.uint64)
    after[:size] = points
    whose = np.full(size + 2, -1, dtype=np.int64)
    whose[:size] = owner
    second, third = whose[1:-1] == owner, whose[2:] == owner
    first = np.ones(size, dtype=bool)
    first[1:] = owner[1:] != owner[:-1]
    tokens = (
        points | np.where(second, after[1:-1] << np.uint64(_BITS), 0) | np.where(third, after[2:] << np.uint64(2 * _BITS), 0)
    )
    chosen = third | first
    return Shingled(tokens[chosen], owner[chosen])


def signatures(found: Shingled, count: int) -> NDArray[np.uint32]:
    """(count, 128) smallest hashes; a text without shingles has a row of 0xFFFFFFFF."""
    mixed = mix(found.tokens)
    rows = np.full(count * BINS, _EMPTY, dtype=np.uint32)
    place = found.owner * BINS + (mixed >> np.uint64(57)).astype(np.int64)
    np.minimum.at(rows, place, (mixed & np.uint64(0xFFFFFFFE)).astype(np.uint32))
    return _densified(rows.reshape(count, BINS))


def _densified(rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Every empty bin takes what a filled one holds; which one depends on the bin and the draw alone, so alike texts agree."""
    original = rows.copy()
    which, bins = np.nonzero(rows == _EMPTY)
    some = (original != _EMPTY).any(axis=1)
    which, bins = which[some[which]], bins[some[which]]
    for draw in _draws():
        if not len(which):
            return rows
        taken = original[which, draw[bins]]
        hit = taken != _EMPTY
        rows[which[hit], bins[hit]] = taken[hit]
        which, bins = which[~hit], bins[~hit]
    for row, empty in zip(which.tolist(), bins.tolist(), strict=True):
        filled = np.flatnonzero(original[row] != _EMPTY)
        rows[row, empty] = original[row, filled[np.searchsorted(filled, empty) % len(filled)]]
    return rows


@cache
def _draws() -> list[Places]:
    generator = np.random.Generator(np.random.PCG64(1))
    return [generator.integers(0, BINS, BINS) for _ in range(_DRAWS)]


def bands(rows: NDArray[np.uint32], threshold: float) -> NDArray[np.uint32]:
    """(count, bands) keys: texts near one another at `threshold` share at least one, all but about 1 in 1,000 of them.

    A text without shingles has zeros.
    """
    length = _rows(threshold)
    number = BINS // length
    keys = np.zeros((len(rows), number), dtype=np.uint64)
    for step in range(length):
        # Rows of a band stand far apart: an empty bin often has its neighbour's value.
        keys = mix(keys ^ rows[:, step * number : (step + 1) * number])
    short = (keys >> np.uint64(32)).astype(np.uint32)
    short[rows[:, 0] == _EMPTY] = 0
    return short


def _rows(threshold: float) -> int:
    """The longest band (the fewest false candidates) that misses a pair at `threshold` at most `_MISS` of the time."""
    likely = [rows for rows in range(1, 33) if (1 - threshold**rows) ** (BINS // rows) <= _MISS]
    return max(likely, default=1)


def mix(numbers: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele et al. 2014): a fixed bijection that spreads every bit."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def similarity(first: Numbers, second: Numbers) -> float:
    """Jaccard similarity of two sets, each given as ascending distinct numbers; 0 where one is empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def shingle_set(text: str) -> Numbers:
    """A text's shingles, ascending and distinct."""
    return np.unique(shingled([text]).tokens)


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _letters(points: NDArray[np.uint32]) -> NDArray[np.uint32]:
    lowered = _table()[np.minimum(points, _LETTERS)]
    kept: NDArray[np.uint32] = lowered[lowered != 0]
    return kept


@cache
def _table() -> NDArray[np.uint32]:
    """Code point → its lower case, or 0 for what is neither letter nor digit; the last entry stands for all beyond."""
    characters = map(chr, range(_LETTERS))
    lowered = [(low if len(low := one.lower()) == 1 else one) if one.isalnum() else "\0" for one in characters]
    return np.array([*map(ord, lowered), 0], dtype=np.uint32)


class Families:
    """Disjoint sets over 0 … size-1, joined pair by pair (union-find with path halving).

    `tied[item]`: a pair joined it to an earlier item, so it was of a family already when it came, whatever came later.
    """

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))
        self.tied = bytearray(size)

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        self.tied[max(first, second)] |= first != second
        # The smaller index is the root, so that names do not depend on the order of joining.
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """The members of each family, in order."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.root(item), []).append(item)
        return list(found.values())
