"""N-gram counts against collections.Counter."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.metrics import ngrams
from llmkit.metrics.ngrams import Sequences

ORDERS = 6
TEXT = st.lists(st.integers(0, 3), max_size=14)
TEXTS = st.lists(TEXT, max_size=6)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=6)


def packed(texts: list[list[int]]) -> Sequences:
    codes = [code for text in texts for code in text]
    return Sequences(np.array(codes, dtype=np.int32), np.array([len(text) for text in texts], dtype=np.int64))


def grams(text: list[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))


@pytest.fixture(params=[1, 7, 1 << 20], autouse=True)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with blocks of one text, of a few, and of all."""
    monkeypatch.setattr(ngrams, "_AT_ONCE", request.param)


RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RELAXED
@given(PAIRS)
def test_matches_and_shared_types_equal_counter_intersections(pairs: list[tuple[list[int], list[int]]]) -> None:
    sides = packed([one for one, _ in pairs]), packed([two for _, two in pairs])
    shared = [[grams(one, n) & grams(two, n) for n in range(1, ORDERS + 1)] for one, two in pairs]
    assert ngrams.matches(*sides, ORDERS).tolist() == [[each.total() for each in row] for row in shared]
    assert ngrams.shared_types(*sides, ORDERS).tolist() == [[len(each) for each in row] for row in shared]


@RELAXED
@given(TEXTS)
def test_repeats_and_totals_give_the_different_ngrams_of_each_text(texts: list[list[int]]) -> None:
    sequences = packed(texts)
    repeated = ngrams.repeats(sequences, ORDERS)
    for n in range(1, ORDERS + 1):
        assert (sequences.of_order(n) - repeated[:, n - 1]).tolist() == [len(grams(text, n)) for text in texts]


@RELAXED
@given(TEXTS, st.integers(1, 4))
def test_types_are_the_different_ngrams_of_all_and_those_of_one_text_only(texts: list[list[int]], n: int) -> None:
    holders = Counter(gram for text in texts for gram in grams(text, n))
    in_texts = Counter(gram for text in texts for gram in set(grams(text, n)))
    total, own = ngrams.types(packed(texts), n)
    assert total == len(holders)
    assert own.tolist() == [sum(in_texts[gram] == 1 for gram in grams(text, n)) for text in texts]


@RELAXED
@given(TEXTS, st.sets(st.integers(0, 3)))
def test_codes_left_out_shorten_their_texts(texts: list[list[int]], dropped: set[int]) -> None:
    left = packed(texts).without(dropped)
    expected = packed([[code for code in text if code not in dropped] for text in texts])
    assert (left.codes.tolist(), left.lengths.tolist()) == (expected.codes.tolist(), expected.lengths.tolist())


def test_characters_are_code_points_lone_surrogates_among_them() -> None:
    found = ngrams.characters(["a😀", "", "\ud800"])
    assert (found.codes.tolist(), found.lengths.tolist()) == ([97, 0x1F600, 0xD800], [2, 0, 1])
