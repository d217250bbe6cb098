"""The longest common subsequence of two lists of numbers. Knows nothing of text.

rouge-score-rs counts short ones 64 cells at a time; above 32,768 tokens on both sides it falls back to cell by cell, 40 s
for 100,000 against 100,000. There we use Python's own long integers, a second.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.metrics.ngrams import Ints, Sequences

Flags = NDArray[np.bool_]

_LONG = 1 << 15


def lengths(given: Sequences, expected: Sequences) -> Ints:
    """The length of the longest common subsequence of each pair, [pairs]."""
    from rouge_score_rs import RougeScorer

    one, other = _split(given), _split(expected)
    long = np.minimum(given.lengths, expected.lengths) > _LONG
    scored = RougeScorer(["rougeL"]).score_batch(_spelled(other, skip=long), _spelled(one, skip=long))
    # It tells precision, the share of the answer, and no count.
    found = np.rint(np.array([score["rougeL"].precision for score in scored]) * given.lengths).astype(np.int64)
    for index in np.flatnonzero(long):
        found[index] = by_bits(one[index], other[index])
    return found


def by_bits(one: Sequence[int], other: Sequence[int]) -> int:
    """The length by bit-parallel dynamic programming (Hyyrö 2004): a row of the table is one long integer."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    masks = _masks(shorter, wanted=set(longer))
    full = (1 << len(shorter)) - 1
    row = full
    for number in longer:
        mask = masks.get(number)
        if mask is not None:
            met = row & mask
            row = ((row + met) | (row - met)) & full
    return len(shorter) - row.bit_count()


def _masks(numbers: Sequence[int], *, wanted: set[int]) -> dict[int, int]:
    """For each wanted number, the integer whose bits are the places where it stands."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if number in wanted:
            places.setdefault(number, []).append(place)
    masks = {}
    for number, found in places.items():
        bits = bytearray(found[-1] // 8 + 1)
        for place in found:
            bits[place >> 3] |= 1 << (place & 7)
        masks[number] = int.from_bytes(bits, "little")
    return masks


def _spelled(texts: list[list[int]], *, skip: Flags) -> list[str]:
    """Text for the scorer: numbers pass its tokenizer, which knows ASCII only."""
    return ["" if skipped else " ".join(map(str, text)) for text, skipped in zip(texts, skip, strict=True)]


def _split(texts: Sequences) -> list[list[int]]:
    codes, ends = texts.codes.tolist(), np.cumsum(texts.lengths).tolist()
    return [codes[start:end] for start, end in zip([0, *ends], ends, strict=False)]
