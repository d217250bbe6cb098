"""Pairs of nearly equal texts: fast by MinHash (`near_families`), or exact (`near_pairs_across`). Knows strings only.

Near is Jaccard similarity of the sets of character 3-shingles, at or above a threshold. The fast way is MinHash with
banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3), each candidate verified exactly.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil

import numpy as np
import rensa
from numpy.typing import NDArray

SHINGLE = 3
_PERMUTATIONS = 256
_SEED = 1
_ROWS_AT_ONCE = 2048  # signatures arrive as lists of Python ints, 10 KB each
_ALL_PAIRS_UP_TO = 32  # members of a bucket that are each compared with all before them
_REPRESENTATIVES = 64  # of a bucket that a later member is compared with
_SETS_KEPT = 16384  # shingle sets at hand for verifying, some 20 KB each
_MISS = 1e-3  # chance to miss one pair right at the threshold that decides the length of a band


def shingles(text: str) -> frozenset[str]:
    """The set of a text's 3-character windows; a shorter text is its own only shingle."""
    if len(text) <= SHINGLE:
        return frozenset((text,))
    return frozenset([text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|, 0 … 1."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


class Families:
    """Disjoint sets over 0 … size-1, joined pair by pair (union-find with path halving)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        # The smaller index is the root, so that names do not depend on the order of joining.
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """The members of each family, in order."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.root(item), []).append(item)
        return list(found.values())


def near_families(texts: Sequence[str], threshold: float) -> Families:
    """Families of places in `texts`, joined by verified pairs; MinHash may miss a pair, most likely one at the threshold.

    In a bucket of n texts at most `_REPRESENTATIVES` × n are compared.
    """
    found = Families(len(texts))
    cached = lru_cache(maxsize=_SETS_KEPT)(shingles)
    for members in _buckets(texts, threshold):
        kept: list[int] = []
        for item in members:
            rivals = kept[-_REPRESENTATIVES:]
            for other in rivals:
                if found.root(other) != found.root(item) and jaccard(cached(texts[item]), cached(texts[other])) >= threshold:
                    found.join(other, item)
            # Past the first few, a text whose family stands here already is spoken for.
            if len(kept) < _ALL_PAIRS_UP_TO or all(found.root(other) != found.root(item) for other in rivals):
                kept.append(item)
    return found


def near_pairs_across(left: Sequence[str], right: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Every pair (place in `left`, place in `right`, similarity) at or above `threshold`: exact, none is missed."""
    if not left or not right:
        return
    index = _Index(right, threshold)
    cached = lru_cache(maxsize=_SETS_KEPT)(shingles)
    for place, text in enumerate(left):
        mine = shingles(text)
        for other in index.candidates(mine):
            similarity = jaccard(mine, cached(right[other]))
            if similarity >= threshold:
                yield place, other, similarity


class _Index:
    """Texts by their rarest shingles: who is near another text shares some of these (prefix filter, Bayardo et al. 2007).

    Put each set in order, rarest first. Two sets with at least `a` members in common share, for every c ≤ a, at least c
    of their first |set| - a + c; and sets near one another have at least threshold × |set| in common, for either set.
    """

    _SHARED = 24  # c above: more gives longer lists to count and fewer candidates to verify

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self._threshold = threshold
        owners: dict[str, int] = {}
        sets = [shingles(text) for text in texts]
        for members in sets:
            for shingle in members:
                owners[shingle] = owners.get(shingle, 0) + 1
        ranked = sorted(owners, key=lambda shingle: (owners[shingle], shingle))
        self._rank = {shingle: rank for rank, shingle in enumerate(ranked)}
        self._sizes = np.array([len(members) for members in sets])
        lists: list[list[int]] = [[] for _ in ranked]
        for place, members in enumerate(sets):
            for rank in sorted([self._rank[shingle] for shingle in members])[: self._reach(len(members))]:
                lists[rank].append(place)
        self._places = [np.array(places, dtype=np.int64) for places in lists]

    def candidates(self, members: frozenset[str]) -> list[int]:
        """Places of all texts that may be near a text of these shingles."""
        size = len(members)
        ranks = sorted([self._rank[shingle] for shingle in members if shingle in self._rank])
        # A shingle that no text here has is the rarest of all: it takes up a place in the order and leads nowhere.
        reach = self._reach(size) - (size - len(ranks))
        lists = [self._places[rank] for rank in ranks[: max(0, reach)]]
        if not lists:
            return []
        shared = np.bincount(np.concatenate(lists))
        needed = min(self._SHARED, self._common(size))
        found = np.flatnonzero(shared >= needed)
        sizes = self._sizes[found]
        fits = (sizes + 1e-6 >= self._threshold * size) & (size + 1e-6 >= self._threshold * sizes)
        return [int(place) for place in found[fits]]

    def _common(self, size: int) -> int:
        """How many members a set of this size has in common with any that is near it, at the least."""
        return max(1, ceil(self._threshold * size - 1e-6))  # the slack is for rounding

    def _reach(self, size: int) -> int:
        return min(size, size - self._common(size) + self._SHARED)


def _buckets(texts: Sequence[str], threshold: float) -> Iterator[list[int]]:
    """Groups of two or more texts that agree in all rows of a band, band by band."""
    if len(texts) < 2:
        return
    keys = _band_keys(texts, _rows(threshold))
    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        edges = np.flatnonzero(np.diff(column[order])) + 1
        starts = np.concatenate([[0], edges])
        ends = np.concatenate([edges, [len(order)]])
        for index in np.flatnonzero(ends - starts > 1):
            yield order[starts[index] : ends[index]].tolist()


def _band_keys(texts: Sequence[str], rows: int) -> NDArray[np.uint64]:
    """One 64-bit key per text and band: (texts, bands)."""
    bands = _PERMUTATIONS // rows
    keys = np.empty((len(texts), bands), dtype=np.uint64)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        sets = [list(shingles(text)) for text in texts[start : start + _ROWS_AT_ONCE]]
        digests = rensa.RMinHash.digests_from_token_sets(sets, num_perm=_PERMUTATIONS, seed=_SEED)
        signature = np.array(digests, dtype=np.uint64)[:, : bands * rows].reshape(len(sets), bands, rows)
        mixed = np.zeros((len(sets), bands), dtype=np.uint64)
        for row in range(rows):
            # A multiplication by a large odd number, modulo 2**64, spreads each row over the key.
            mixed = (mixed ^ signature[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys[start : start + len(sets)] = mixed
    return keys


def _rows(threshold: float) -> int:
    """The longest band (the fewest false candidates) that misses a pair at `threshold` at most `_MISS` of the time."""
    likely = [rows for rows in range(1, 33) if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISS]
    return max(likely, default=1)
