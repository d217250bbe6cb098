"""Common subsequences: the library, our bits and the textbook's table."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.metrics import lcs
from tests.metrics.test_ngrams import packed

TEXT = st.lists(st.integers(0, 4), max_size=40)


def by_table(one: list[int], other: list[int]) -> int:
    row = [0] * (len(other) + 1)
    for left in one:
        steps = zip(pairwise(row), other, strict=True)
        new = [0]
        for (corner, above), right in steps:
            new.append(corner + 1 if left == right else max(above, new[-1]))
        row = new
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_both_ways_equal_the_textbook(pairs: list[tuple[list[int], list[int]]]) -> None:
    expected = [by_table(*pair) for pair in pairs]
    assert [lcs.by_bits(*pair) for pair in pairs] == expected
    assert lcs.lengths(packed([one for one, _ in pairs]), packed([two for _, two in pairs])).tolist() == expected


def test_long_texts_go_by_bits_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 9, size).tolist() for size in (3, 60, 70)]
    sides = packed(texts), packed(texts[::-1])
    direct = lcs.lengths(*sides).tolist()
    monkeypatch.setattr(lcs, "_LONG", 10)
    assert lcs.lengths(*sides).tolist() == direct
