"""A growing set of 64-bit keys, 8 bytes each: which of these have been seen? Knows numbers only.

Sorted runs of geometric sizes, merged as they grow (a log-structured merge tree, O'Neil et al. 1996): a Python set of as
many keys takes ten times the memory. While two runs merge, a key takes up to 20 bytes.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class Seen:
    """Keys so far. Two different dialogues share a 64-bit key once in 37 million times among a million of them."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def add(self, keys: Keys) -> NDArray[np.bool_]:
        """(n,) True for each key that was not here before, the first of equal ones among them; all are here from now on."""
        order = np.argsort(keys, kind="stable")
        ascending = keys[order]
        fresh = np.ones(len(keys), dtype=bool)
        fresh[1:] = ascending[1:] != ascending[:-1]
        for run in self._runs:
            place = np.searchsorted(run, ascending)
            place[place == len(run)] = 0
            fresh &= run[place] != ascending
        self._push(ascending[fresh])
        found = np.empty(len(keys), dtype=bool)
        found[order] = fresh
        return found

    def _push(self, run: Keys) -> None:
        while self._runs and len(self._runs[-1]) < 6 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # a merge sort: linear on two sorted halves
        if len(run):
            self._runs.append(run)
