"""What counts as the same answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.metrics.matching import normalised, tallies


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris.", "paris"),
        ("New  York", "new york\n"),
        ("你好，世界！", "你好世界"),
        ("你好， 世界", "你好世界"),
        ("“好”", "好"),
        ("用 Python 写", "用Python写"),
        ("3.5", "3.5."),
        ("...", "..."),
        ("don't", "dont"),
    ],
)
def test_case_punctuation_and_white_space_do_not_matter(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("12:30", "1230"),
        ("x = 1", "x + 1"),
        ("👍", "👎"),
        ("!", "?"),
        ("", "!"),
        ("newyork", "new york"),
    ],
)
def test_numbers_symbols_and_words_do(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text())
def test_normalising_twice_changes_nothing_and_white_space_around_never_matters(text: str) -> None:
    assert normalised(f" {text}\n") == normalised(text)
    assert normalised(text).strip() == normalised(text)


def test_the_score_is_the_share_of_exact_answers() -> None:
    (found,) = tallies(["a", "B.", "c", ""], ["A", "b", "d", "e"])
    assert (found.score, found.samples.tolist()) == (50, [100, 100, 0, 0])
