"""Every pair of near-duplicate texts across two collections: exact, where `near` is fast and misses one in a thousand.

A prefix filter (Bayardo et al. 2007, "Scaling up all pairs similarity search"): put each text's shingles in one order,
rarest first. Two sets near one another at threshold t have at least t × |set| shingles in common, for either set; so each
has one of the common ones among its first |set| - t × |set| + 1. Candidates that share one of these are compared exactly.
Within the filter a 40-bit hash stands for a shingle, and one collision in a text is allowed for. Knows strings only.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.near import Numbers, Places, mix, shingle_set, shingled, similarity

BATCH = 1024  # texts at once; must stay below 2**12, the bits that a sort key has for them
_HASH = np.uint64(40)
_OWNER = np.uint64(52)
_RARE = 4095  # how often a shingle occurs is told apart up to here
_BUCKETS = 2**22  # of the table that counts them


class Overlap(NamedTuple):
    """Text `left` of the one asked for and text `right` of the index are `similarity` (0–1) alike."""

    left: int
    right: int
    similarity: float


class Index:
    """Texts that others are compared with; holds about 16 bytes × a third of their shingles.

    Texts without a letter or digit are near to nothing.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self._texts, self._threshold = texts, threshold
        self._counts = np.zeros(_BUCKETS, dtype=np.uint32)
        for start in range(0, len(texts), BATCH):
            hashes, _ = _distinct(texts[start : start + BATCH])
            np.add.at(self._counts, _bucket(hashes), np.uint32(1))
        tokens, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        self._sizes = np.zeros(len(texts), dtype=np.int64)
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            hashes, owner = _distinct(batch)
            self._sizes[start : start + BATCH] = np.bincount(owner, minlength=len(batch))
            rare, whose = self._prefix(hashes, owner, len(batch))
            tokens.append(rare)
            owners.append(whose + start)
        token, place = np.concatenate(tokens), np.concatenate(owners)
        order = np.argsort(token, kind="stable")
        self._token, self._place = token[order], place[order]

    def overlaps(self, texts: Sequence[str]) -> Iterator[Overlap]:
        """Every pair at or above the threshold, in the order of `texts`."""
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            for left, rivals in self._candidates(batch):
                mine = shingle_set(batch[left])
                for right in rivals:
                    alike = similarity(mine, shingle_set(self._texts[right]))
                    if alike >= self._threshold:
                        yield Overlap(start + left, right, alike)

    def _candidates(self, batch: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        hashes, owner = _distinct(batch)
        sizes = np.bincount(owner, minlength=len(batch))
        known = self._counts[_bucket(hashes)] > 0
        shared = np.bincount(owner[known], minlength=len(batch))
        hopeful = (shared >= self._common(sizes)) & (sizes > 0)
        alive = hopeful[owner]
        rare, whose = self._prefix(hashes[alive], owner[alive], len(batch))
        low, high = np.searchsorted(self._token, rare), np.searchsorted(self._token, rare, side="right")
        counts = high - low
        left = np.repeat(whose, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        right = self._place[np.repeat(low, counts) + within]
        pairs = np.unique(np.stack([left, right]), axis=1) if len(left) else np.zeros((2, 0), dtype=np.int64)
        mine, theirs = sizes[pairs[0]], self._sizes[pairs[1]]
        # The slack is for rounding, and for a collision.
        fits = (self._threshold * np.maximum(mine, theirs) - 1 - 1e-6) <= np.minimum(mine, theirs)
        pairs = pairs[:, fits]
        edges = np.flatnonzero(np.diff(pairs[0])) + 1
        for one in np.split(pairs, edges, axis=1):
            if one.shape[1]:
                yield int(one[0, 0]), one[1].tolist()

    def _common(self, sizes: Places) -> Places:
        """How many shingles a set of this size shares with any near it, at the least, one collision allowed for."""
        common: Places = np.maximum(1, np.ceil(self._threshold * sizes - 1e-6).astype(np.int64) - 1)
        return common

    def _prefix(self, hashes: Numbers, owner: Places, count: int) -> tuple[Numbers, Places]:
        """The rarest tokens of each text that decide: (tokens, owners). A token's upper bits tell how rare it is."""
        frequency = np.minimum(self._counts[_bucket(hashes)], _RARE).astype(np.uint64)
        keys = (owner.astype(np.uint64) << _OWNER) | (frequency << _HASH) | hashes
        keys.sort()
        whose = (keys >> _OWNER).astype(np.int64)
        sizes = np.bincount(whose, minlength=count)
        rank = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        token = keys & np.uint64((1 << 52) - 1)
        chosen = (rank <= (sizes - self._common(sizes))[whose]) & (token >> _HASH > 0)
        return token[chosen], whose[chosen]


def _distinct(texts: Sequence[str]) -> tuple[Numbers, Places]:
    """40-bit hashes of each text's shingles, without repetition, and whose they are."""
    found = shingled(texts)
    keys = (found.owner.astype(np.uint64) << _HASH) | (mix(found.tokens) >> np.uint64(64 - 40))
    keys.sort()
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    keys = keys[first]
    return keys & np.uint64((1 << 40) - 1), (keys >> _HASH).astype(np.int64)


def _bucket(hashes: Numbers) -> NDArray[np.int64]:
    return (hashes % np.uint64(_BUCKETS)).astype(np.int64)
