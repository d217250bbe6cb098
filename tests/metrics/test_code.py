"""pass@k against enumeration and simulation; what a report of code counts."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import UsageError
from llmkit.metrics.code import pass_at_k, report, tallies
from llmkit.problems import Outcome, Problem

RIGHT, WRONG, SLOW = Outcome(True), Outcome(False, "AssertionError"), Outcome(False, "no end after 5 s", timed_out=True)
PROGRAM = "def f():\n    return 1\n"


def problem(name: str) -> Problem:
    return Problem(name, "def f():\n", "f", "    return 1\n", "def check(candidate):\n    assert candidate() == 1\n")


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_unbiased_on_a_synthetic_set() -> None:
    """Problems of known difficulty: the mean estimate is the true chance that one of k fresh samples passes."""
    rng, k, n = random.Random(3), 3, 10
    chances = [0.02, 0.1, 0.3, 0.5, 0.9]
    estimates = [[pass_at_k(n, sum(rng.random() < chance for _ in range(n)), k) for chance in chances] for _ in range(4000)]
    truth = np.mean([1 - (1 - chance) ** k for chance in chances])
    assert np.mean(estimates) == pytest.approx(truth, abs=0.005)


@given(st.integers(1, 500), st.data())
def test_pass_at_k_grows_with_k_and_with_what_is_correct(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    value = pass_at_k(n, correct, k)
    assert 0.0 <= value <= 1.0
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    if k < n:
        assert pass_at_k(n, correct, k + 1) >= value - 1e-12
    if correct < n:
        assert pass_at_k(n, correct + 1, k) >= value - 1e-12


@pytest.mark.parametrize(("n", "correct", "k"), [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_it_cannot_mean(n: int, correct: int, k: int) -> None:
    with pytest.raises(UsageError, match="pass@"):
        pass_at_k(n, correct, k)


def test_a_report_counts_what_passed_what_is_valid_and_what_ran_out_of_time() -> None:
    one, two = problem("1"), problem("2")
    outcomes = {one: [RIGHT, WRONG], two: [SLOW, WRONG]}
    programs = {one: [PROGRAM, "def f(:"], two: ["def f():\n    while True:\n        pass\n", ""]}
    assert report(outcomes, programs, ks=(1, 2, 5)) == {
        "pass@1": 25.0,
        "pass@2": 50.0,
        "syntax_valid": 0.5,
        "complexity": 1.5,
        "n_problems": 2,
        "n_samples": 4,
        "timeouts": 1,
    }


def test_code_that_was_not_run_has_no_pass_at_k() -> None:
    found = report({}, {problem("1"): [""]})
    assert found == {"syntax_valid": 0.0, "complexity": None, "n_problems": 1, "n_samples": 1, "timeouts": 0}


def test_each_problem_is_a_row_of_every_tally() -> None:
    one, two = problem("1"), problem("2")
    made = tallies({one: [RIGHT], two: [WRONG, RIGHT, RIGHT, RIGHT]}, {one: [PROGRAM], two: [PROGRAM, "", "", ""]}, ks=(1, 1))
    assert {name: tally.samples.tolist() for name, tally in made.items()} == {
        "pass@1": [100.0, 75.0],
        "syntax_valid": [1.0, 0.25],
        "complexity": [1.0, 1.0],
    }
    assert made["pass@1"].score == 87.5
    assert made["syntax_valid"].score == 0.4
