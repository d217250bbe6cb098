"""N-grams that texts share or repeat, counted for thousands of texts at once. Knows sequences of integers; no text.

Exact, without hashing: an (n+1)-gram is the pair of the n-grams it begins and ends with, so each order is one sort of pairs
of ranks. What has no partner at one order has none at the next and is dropped, so the higher orders are nearly free.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Worth = Callable[[Ints, Ints], Ints]

_AT_ONCE = 1 << 20  # codes sorted at a time: bounds the memory


@dataclass(frozen=True, eq=False)
class Sequences:
    """Texts as whole numbers ≥ 0, one text after the other. `codes`: [all units]; `lengths`: [texts]."""

    codes: Codes
    lengths: Ints

    def of_order(self, n: int) -> Ints:
        """How many n-grams each text has, [texts]."""
        return np.maximum(self.lengths - n + 1, 0)

    def without(self, codes: Iterable[int]) -> "Sequences":
        """The same texts less these codes."""
        kept = ~np.isin(self.codes, list(codes))
        texts = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return Sequences(self.codes[kept], np.bincount(texts[kept], minlength=len(self.lengths)))


class Vocabulary(dict[str, int]):
    """A number for each token, given as tokens are met."""

    def __init__(self) -> None:
        self._next = count()

    def __missing__(self, token: str) -> int:
        number = self[token] = next(self._next)
        return number


def encode(texts: Sequence[str], tokenize: Callable[[str], Sequence[str]], vocabulary: Vocabulary) -> Sequences:
    """Texts as the numbers that `vocabulary` gives their tokens; texts that share one can be compared."""
    parts, lengths = [], []
    for text in texts:
        tokens = tokenize(text)
        lengths.append(len(tokens))
        parts.append(np.array([vocabulary[token] for token in tokens], dtype=np.int32))
    return Sequences(np.concatenate([np.empty(0, np.int32), *parts]), np.array(lengths, dtype=np.int64))


def characters(texts: Sequence[str]) -> Sequences:
    """Texts as code points; a lone surrogate is one."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.int32)
    return Sequences(codes, np.array([len(text) for text in texts], dtype=np.int64))


def matches(one: Sequences, other: Sequences, orders: int) -> Ints:
    """Clipped matches of each pair of texts, [pairs, orders]: Σ over n-grams of the lesser of its two counts."""
    return _of_pairs(one, other, orders, _lesser)


def shared_types(one: Sequences, other: Sequences, orders: int) -> Ints:
    """Different n-grams that both texts of a pair hold, [pairs, orders]."""
    return _of_pairs(one, other, orders, lambda first, both: (_lesser(first, both) > 0).astype(np.int64))


def repeats(texts: Sequences, orders: int) -> Ints:
    """N-grams of each text that stood in it before, [texts, orders]; the others are its different ones."""
    nothing = Sequences(texts.codes[:0], np.zeros_like(texts.lengths))
    return _of_pairs(texts, nothing, orders, lambda _, both: both - 1)


def types(texts: Sequences, n: int) -> tuple[int, Ints]:
    """Different n-grams of all texts together, and how many of them only this text holds, [texts]."""
    text = np.repeat(np.arange(len(texts.lengths)), texts.lengths)
    grams = texts.codes.astype(np.int64)
    for _ in range(n - 1):
        inside = text[1:] == text[:-1]
        # The pair of an n-gram and its right neighbour is an (n+1)-gram; `text` is that of its beginning.
        grams, text = _ranks(grams[:-1] * (grams.max(initial=0) + 1) + grams[1:])[inside], text[:-1][inside]
    held = np.sort(grams * len(texts.lengths) + text)
    gram, holder = np.divmod(held[_starts(held)], max(1, len(texts.lengths)))
    starts = _starts(gram)
    alone = np.diff(starts, append=len(gram)) == 1
    return len(starts), np.bincount(holder[starts[alone]], minlength=len(texts.lengths))


def _starts(ordered: Ints) -> Ints:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), dtype=bool), ordered[1:] != ordered[:-1]]))


def _ranks(values: Ints) -> Ints:
    """The place of each number among the different ones, in their order."""
    by_value = np.argsort(values)
    starts = _starts(values[by_value])
    ranks: Ints = np.empty_like(values)
    ranks[by_value] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    return ranks


def _lesser(first: Ints, both: Ints) -> Ints:
    least: Ints = np.minimum(first, both - first)
    return least


def _of_pairs(one: Sequences, other: Sequences, orders: int, worth: Worth) -> Ints:
    sizes = one.lengths + other.lengths
    blocks = [_of_block(_cut(one, block), _cut(other, block), orders, worth) for block in _blocks(sizes)]
    return np.concatenate([np.zeros((0, orders), np.int64), *blocks])


def _blocks(sizes: Ints) -> Iterator[slice]:
    """Consecutive slices of so many texts that a block holds `_AT_ONCE` codes, or is one text."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        yield slice(start, stop)
        start = stop


def _cut(texts: Sequences, block: slice) -> Sequences:
    begin = int(texts.lengths[: block.start].sum())
    lengths = texts.lengths[block]
    return Sequences(texts.codes[begin : begin + int(lengths.sum())], lengths)


def _of_block(one: Sequences, other: Sequences, orders: int, worth: Worth) -> Ints:
    """[pairs, orders]: Σ over the different n-grams of a pair of `worth(count in one, count in both)`."""
    pairs = len(one.lengths)
    found = np.zeros((pairs, orders), dtype=np.int64)
    lengths = np.concatenate([one.lengths, other.lengths])
    text = np.repeat(np.arange(2 * pairs), lengths)
    pair, in_one = text % max(1, pairs), text < pairs
    # A place is skipped between texts, so that the end of one and the beginning of the next are no neighbours.
    place = np.arange(len(text)) + text
    codes = np.concatenate([one.codes, other.codes]).astype(np.int64)
    keys = pair * (codes.max(initial=0) + 1) + codes
    for order in range(orders):
        if not len(keys):
            break
        by_key = np.argsort(keys)
        starts = _starts(keys[by_key])
        sizes = np.diff(starts, append=len(keys))
        value = worth(np.add.reduceat(in_one[by_key], starts, dtype=np.int64), sizes)
        found[:, order] = np.bincount(pair[by_key[starts]], weights=value, minlength=pairs)
        ranks = np.empty_like(keys)
        ranks[by_key] = np.repeat(np.where(value > 0, np.arange(len(starts)), -1), sizes)
        left = np.flatnonzero((ranks[:-1] >= 0) & (ranks[1:] >= 0) & (place[1:] == place[:-1] + 1))
        keys = ranks[left] * len(starts) + ranks[left + 1]
        place, pair, in_one = place[left], pair[left], in_one[left]
    return found
