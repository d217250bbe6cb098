"""The gate fails what fell, passes what did not, and says where it cannot know."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import UsageError
from llmkit.metrics import gate
from llmkit.metrics.gate import FAIL, PASS, UNKNOWN, Entry, Limits
from llmkit.metrics.tally import Tally, mean
from llmkit.metrics.text import score
from tests.metrics import simulated

TEXTS = st.lists(st.sampled_from(["the cat sat on the mat", "", "天气很好", "😀 ok", "a b a b a b"]), min_size=1, max_size=30)


def tally(values: Any, **more: Any) -> Mapping[str, Tally]:
    return {"rougeL": mean("rougeL", np.asarray(values, dtype=float), **more)}


def judged(before: Mapping[str, Tally], after: Mapping[str, Tally], most: float = 0.5, **more: Any) -> gate.Check:
    [check] = gate.judge(Limits(max_drop={"rougeL": most}), [Entry("q4", {}, after, before, **more)]).checks
    return check


def noise(samples: int, *, shift: float = 0.0, spread: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    before = rng.uniform(20, 80, samples)
    moved = rng.normal(0, spread, samples)
    return tally(before), tally(before - shift + moved - moved.mean())


def test_a_real_drop_beyond_the_tolerance_fails() -> None:
    check = judged(*noise(400, shift=2.0))
    assert (check.verdict, check.samples_needed) == (FAIL, None)
    assert check.drop == pytest.approx(2.0)
    assert 0 < (check.lower_bound or 0) < 2.0
    assert "2.00 worse; 0.5 is allowed" in check.why


@pytest.mark.parametrize(("shift", "why"), [(0.4, "0.40 worse"), (0.0, "0.00"), (-3.0, "3.00 better")])
def test_what_stays_within_the_tolerance_passes(shift: float, why: str) -> None:
    check = judged(*noise(400, shift=shift))
    assert check.verdict == PASS
    assert why in check.why or shift == 0


def test_too_few_samples_are_unknown_and_their_number_suffices() -> None:
    check = judged(*noise(100, spread=5.0))
    assert check.verdict == UNKNOWN
    assert check.samples_needed
    assert f"about {check.samples_needed:,} would" in check.why
    assert judged(*noise(check.samples_needed + 1, spread=5.0, seed=1), most=0.52).verdict == PASS


def test_a_drop_that_may_be_noise_is_unknown_not_passed() -> None:
    check = judged(*noise(50, shift=1.2, spread=4.0))
    assert check.verdict == UNKNOWN
    assert "cannot tell it from noise" in check.why
    assert (check.samples_needed or 0) > 50


def test_a_clear_gain_passes_however_few_the_samples_that_tell_the_tolerance() -> None:
    check = judged(*noise(60, shift=-6.0, spread=4.0))
    assert 1.645 * (check.error or 0) > 0.5
    assert check.verdict == PASS


def test_a_tolerance_of_nothing_passes_the_same_and_the_better_alone() -> None:
    assert judged(*noise(400, shift=-1.0), most=0).verdict == PASS
    assert judged(*noise(400, shift=0.5), most=0).verdict == FAIL
    close = judged(*noise(400, shift=0.01), most=0)
    assert (close.verdict, close.samples_needed is not None) == (UNKNOWN, True)
    same_mean = judged(*noise(400, shift=-0.01), most=0)
    assert "allow some drop" in same_mean.why


def test_fewer_samples_than_a_bootstrap_takes_never_fail() -> None:
    least = gate.LEAST_SAMPLES
    check = judged(tally([90.0] * (least - 1)), tally([0.0] * (least - 1)))
    assert (check.verdict, check.samples_needed) == (UNKNOWN, least)
    assert judged(tally([90.0] * least), tally([0.0] * least)).verdict == FAIL


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False), st.floats(0, 5))
def test_identical_outputs_always_pass(hypotheses: list[str], rng: random.Random, most: float) -> None:
    references = [rng.choice(["the cat", "今天天气", "x y z w v"]) for _ in hypotheses]
    one, two = (score(hypotheses, references).tallies for _ in range(2))
    limits = Limits(max_drop=dict.fromkeys(set(one) - gate.NEITHER_BETTER, most))
    assert gate.judge(limits, [Entry("int8", {}, one, two, identical=True)]).exit_code == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.integers(0, 1000), st.floats(0, 3), st.floats(0.01, 10), st.floats(0, 2))
def test_a_worse_model_is_never_judged_better(samples: int, seed: int, shift: float, spread: float, most: float) -> None:
    before, after = noise(samples, spread=spread, seed=seed, shift=shift)
    lower = {"rougeL": mean("rougeL", after["rougeL"].samples - 1.0)}
    order = [PASS, UNKNOWN, FAIL]
    assert order.index(judged(before, lower, most).verdict) >= order.index(judged(before, after, most).verdict)


def test_of_a_metric_where_less_is_better_a_rise_is_the_drop() -> None:
    before, after = noise(400, shift=-2.0)
    flipped = [{"rougeL": replace(one["rougeL"], higher_is_better=False)} for one in (before, after)]
    assert judged(*flipped).verdict == FAIL


def test_what_is_no_number_fails_and_what_is_missing_is_unknown() -> None:
    whole, broken = tally([50.0] * 40), tally([math.nan] * 40)
    assert judged(whole, broken).verdict == FAIL
    assert judged(broken, whole).verdict == UNKNOWN
    assert judged(broken, broken, identical=True).verdict == FAIL
    assert judged(whole, {}).verdict == UNKNOWN
    assert judged({}, {}, identical=True).verdict == UNKNOWN


ROW = {
    "metrics": {"rougeL": 20.0},
    "kl": 0.1,
    "size_bytes": 300,
    "tokens_per_second": 30.0,
    "retention": 0.9,
    "perplexity": math.nan,
    "divergence": {"p99": 2.0},
}


@pytest.mark.parametrize(
    ("limits", "verdict", "why"),
    [
        (Limits(floors={"rougeL": 20.0}), PASS, "rougeL is 20; it has to be at least 20"),
        (Limits(floors={"rougeL": 20.1}), FAIL, "at least 20.1"),
        (Limits(ceilings={"kl": 0.05}), FAIL, "kl is 0.1; it has to be at most 0.05"),
        (Limits(ceilings={"p99": 3.0}), PASS, "p99 is 2"),
        (Limits(ceilings={"perplexity": 100.0}), FAIL, "perplexity is no number"),
        (Limits(floors={"chrf": 0.0}), UNKNOWN, "chrf was not measured"),
        (Limits(max_size=299), FAIL, "size_bytes is 300; it has to be at most 299"),
        (Limits(min_tokens_per_second=30.0), PASS, ""),
        (Limits(min_retention=0.95), FAIL, "retention is 0.9"),
    ],
)
def test_a_number_is_held_to_its_limit(limits: Limits, verdict: str, why: str) -> None:
    found = gate.judge(limits, [Entry("q4", ROW)])
    assert (found.verdict, found.exit_code) == (verdict, {PASS: 0, FAIL: 1, UNKNOWN: 2}[verdict])
    assert why in found.checks[0].why
    json.dumps(found.to_json(), allow_nan=False)


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.none(), st.booleans(), st.text(), st.just(math.nan), st.lists(st.integers())))
def test_nothing_but_a_number_passes_a_limit_on_numbers(value: object) -> None:
    limits = Limits(floors={"x": -1e300}, ceilings={"x": 1e300})
    for row in ({"x": value}, {"metrics": {"x": value}}, {"divergence": {"x": value}}, {"metrics": value}):
        assert gate.judge(limits, [Entry("q4", row)]).verdict != PASS


def test_what_a_report_had_to_write_as_null_still_fails_and_what_was_not_measured_is_unknown() -> None:
    limits = Limits(ceilings={"kl": 1.0})
    for row, verdict in (
        ({"kl": None, "divergence": {"mean": None}}, FAIL),
        ({"kl": None, "divergence": None}, UNKNOWN),
        ({}, UNKNOWN),
    ):
        assert gate.judge(limits, [Entry("q4", row)]).verdict == verdict
    assert gate.judge(Limits(floors={"bleu": 0.0}), [Entry("q4", {"metrics": {"bleu": None}})]).verdict == FAIL


@pytest.mark.parametrize("value", [math.inf, 10**400, -(10**400)])
def test_infinity_and_what_no_float_holds_break_a_ceiling(value: float) -> None:
    assert gate.judge(Limits(ceilings={"kl": 1e9}), [Entry("q4", {"kl": value})]).verdict == FAIL


def test_a_model_without_retention_is_not_held_to_it_and_alone_proves_nothing() -> None:
    endpoint = Entry("endpoint", {"metrics": {"rougeL": 30.0}, "retention": None})
    assert gate.judge(Limits(min_retention=0.8, floors={"rougeL": 20.0}), [endpoint]).verdict == PASS
    assert gate.judge(Limits(min_retention=0.8), [endpoint]).verdict == UNKNOWN


def test_the_worst_check_decides() -> None:
    bad, unsure, good = ({"kl": 9.0}, {}, {"kl": 0.0})
    limits = Limits(ceilings={"kl": 1.0})
    assert gate.judge(limits, [Entry("a", good), Entry("b", unsure), Entry("c", bad)]).verdict == FAIL
    assert gate.judge(limits, [Entry("a", good), Entry("b", unsure)]).verdict == UNKNOWN


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_drop": {"bleu": -0.1}},
        {"max_drop": {"bleu": math.nan}},
        {"max_drop": {"bleu": math.inf}},
        {"floors": {"bleu": math.nan}},
        {"max_size": math.inf},
    ],
)
def test_limits_that_would_prove_nothing_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Limits(**limits)


def test_a_gate_needs_a_model_and_a_metric_with_a_better_side() -> None:
    with pytest.raises(UsageError, match="no model to judge"):
        gate.judge(Limits(max_size=1), [])
    with pytest.raises(UsageError, match="no drop is one"):
        gate.judge(Limits(max_drop={"length_ratio": 1.0}), [Entry("q4", {})])


def test_base_and_baseline_are_not_judged() -> None:
    assert gate.judged(["base", "merged", "int8", "q4_k_m"], baseline="merged") == ["int8", "q4_k_m"]
    assert gate.judged(["base", "merged"]) == ["merged"]


def rates(pair: Any, *, runs: int = 200, metrics: tuple[str, ...] = ("bleu",)) -> dict[str, float]:
    limits = Limits(max_drop=dict.fromkeys(metrics, 0.5))
    verdicts = []
    for seed in range(runs):
        before, after = pair(np.random.default_rng(seed))
        verdicts.append(gate.judge(limits, [Entry("rival", {}, after, before)]).verdict)
    return {verdict: verdicts.count(verdict) / runs for verdict in (PASS, UNKNOWN, FAIL)}


RUNS = [60, pytest.param(200, marks=pytest.mark.slow)]


@pytest.mark.parametrize("runs", RUNS)
def test_of_equally_good_models_at_most_2_in_100_fail_at_500_samples(runs: int) -> None:
    pool = simulated.pool()
    found = rates(lambda rng: simulated.equal_pair(pool, 500, rng), metrics=simulated.METRICS, runs=runs)
    assert found[FAIL] <= 0.02


@pytest.mark.parametrize("runs", RUNS)
def test_a_drop_of_2_bleu_on_500_samples_is_caught_95_times_in_100(runs: int) -> None:
    pool = simulated.pool()
    found = rates(lambda rng: simulated.unequal_pair(pool, 500, rng, points=2.0), runs=runs)
    assert found[FAIL] >= 0.95
    assert found[PASS] == 0


def test_100_samples_cannot_tell_half_a_point_and_say_so() -> None:
    pool = simulated.pool()
    found = rates(lambda rng: simulated.equal_pair(pool, 100, rng), metrics=simulated.METRICS, runs=50)
    assert found[UNKNOWN] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "same"), [(500, 0.5), (2000, 0.0), (2000, 0.5)])
def test_of_equally_good_models_at_most_2_in_100_fail(samples: int, same: float) -> None:
    pool = simulated.pool()
    found = rates(lambda rng: simulated.equal_pair(pool, samples, rng, same=same), metrics=simulated.METRICS)
    assert found[FAIL] <= 0.02
