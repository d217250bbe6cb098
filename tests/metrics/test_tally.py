"""The arithmetic that every metric shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.metrics import tally

VALUES = st.lists(st.floats(0, 100), min_size=1, max_size=30).map(np.array)


@given(VALUES)
def test_the_score_of_a_mean_is_the_mean_and_its_samples_are_the_values(values: tally.Floats) -> None:
    found = tally.mean("m", values)
    assert found.score == pytest.approx(values.mean(), rel=0, abs=1e-9)
    assert found.samples.tolist() == values.tolist()


@given(VALUES, st.integers(0, 10))
def test_weights_on_samples_score_as_repeating_them_does(values: tally.Floats, seed: int) -> None:
    found = tally.mean("m", values)
    weights = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)))
    repeated = np.repeat(values, weights)
    assert found.value(weights @ found.counts) == pytest.approx(repeated.mean(), rel=0, abs=1e-9)


def test_nothing_over_nothing_is_0_and_a_rounding_error_never_passes_100() -> None:
    assert tally.ratio(np.zeros((3, 2))).tolist() == [0, 0, 0]
    assert float(tally.percent(np.array([1 + 1e-15, 1.0]))) <= 100
    assert float(tally.percent(np.array([3.0, 2.0]))) == 150


def test_a_given_point_is_the_score() -> None:
    assert tally.Tally("d", np.ones((2, 2)), tally.ratio, point=0.25).score == 0.25
