"""Intervals and paired tests against theory, sacrebleu and plain resampling."""

import random
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmkit.errors import UsageError
from llmkit.metrics import bootstrap
from llmkit.metrics.tally import Tally, mean, ratio

VALUES = arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 100))


def normal(samples: int, *, seed: int = 0, centre: float = 50.0) -> Tally:
    return mean("rougeL", np.random.default_rng(seed).normal(centre, 20.0, samples))


def test_the_interval_of_a_mean_is_the_one_of_theory() -> None:
    tally = normal(2000)
    low, high = bootstrap.intervals([tally], resamples=4000)["rougeL"]
    half = 1.96 * tally.samples.std() / 2000**0.5
    assert (low, high) == pytest.approx((tally.score - half, tally.score + half), abs=0.05 * half * 2)


def test_95_of_100_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(400):
        low, high = bootstrap.intervals([normal(60, seed=seed)], seed=seed, resamples=400)["rougeL"]
        held += low <= 50.0 <= high
    assert 0.91 <= held / 400 <= 0.98


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_an_interval_lies_within_what_the_samples_scored(values: np.ndarray) -> None:
    low, high = bootstrap.intervals([mean("m", values, unit="tokens")], resamples=50)["m"]
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


def test_a_replicate_is_the_score_of_samples_drawn_with_replacement() -> None:
    rng = np.random.default_rng(3)
    tally = Tally("t", rng.random((7, 2)), ratio)
    drawn = np.random.default_rng(5).integers(7, size=(4, 7))
    assert bootstrap.replicates([tally], seed=5, resamples=4)[0] == pytest.approx(
        [float(ratio(tally.counts[rows].sum(axis=0))) for rows in drawn]
    )


def test_neither_chunks_nor_company_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = normal(50), replace(normal(50, seed=1), name="chrf")
    whole = bootstrap.replicates([one, two], resamples=101)
    assert np.allclose(bootstrap.replicates([two], resamples=101)[0], whole[1], rtol=1e-12)
    monkeypatch.setattr(bootstrap, "_CHUNK", 150)
    assert np.allclose(bootstrap.replicates([one, two], resamples=101), whole, rtol=1e-12)


def test_a_score_that_does_not_add_up_keeps_its_place_in_its_interval() -> None:
    low, high = bootstrap.intervals([replace(normal(300), point=70.0)])["rougeL"]
    plain = bootstrap.intervals([normal(300)])["rougeL"]
    assert low < 70.0 < high
    assert high - low == pytest.approx(plain[1] - plain[0])


@pytest.mark.parametrize("tally", [normal(1), mean("rougeL", np.array([1.0, np.nan])), mean("rougeL", np.array([]))])
def test_what_has_no_spread_to_tell_of_has_no_interval(tally: Tally) -> None:
    assert bootstrap.intervals([tally]) == {}


def paired(a: Tally, b: Tally, *, resamples: int = 50) -> bootstrap.Paired:
    return bootstrap.paired_many([(a, b)], resamples=resamples)[0]


def test_lists_of_unequal_length_and_two_metrics_are_refused() -> None:
    with pytest.raises(UsageError, match="of 3 and of 4 samples"):
        bootstrap.intervals([normal(3), normal(4)])
    with pytest.raises(UsageError, match="two metrics"):
        paired(normal(3), replace(normal(3), name="bleu"))


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans())
def test_a_drop_is_worse_whichever_way_the_metric_points(values: np.ndarray, higher: bool) -> None:
    a = mean("m", values, higher_is_better=higher)
    b = mean("m", values - 5.0 if higher else values + 5.0, higher_is_better=higher)
    found = paired(a, b, resamples=50)
    assert (found.drop, found.low, found.high) == pytest.approx((5, 5, 5))
    assert paired(b, a, resamples=50).drop == pytest.approx(-5)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_a_model_and_itself_are_identical_and_no_drop_apart(values: np.ndarray) -> None:
    found = paired(mean("m", values), mean("m", values.copy()), resamples=20)
    assert found == bootstrap.Paired(0, 0, 0, 1)


def test_a_shared_baseline_changes_nothing() -> None:
    a, b, c = (normal(80, seed=seed) for seed in range(3))
    together = bootstrap.paired_many([(a, b), (a, c)], resamples=200)
    alone = [paired(a, b, resamples=200), paired(a, c, resamples=200)]
    assert [astuple(one) for one in together] == [pytest.approx(astuple(one)) for one in alone]


@pytest.mark.parametrize("shift", [0.0, 2.0, 5.0])
def test_the_p_value_is_that_of_theory(shift: float) -> None:
    a, noise = normal(1000), np.random.default_rng(9).normal(0, 20, 1000)
    b = mean("rougeL", a.samples - shift + noise - noise.mean())
    found = paired(a, b, resamples=4000)
    error = noise.std() / 1000**0.5
    theory = 2 * (1 - _normal_cdf(shift / error))
    assert (found.low, found.high) == pytest.approx((shift - 1.96 * error, shift + 1.96 * error), abs=0.15)
    assert found.p_value == pytest.approx(theory, abs=0.02)


def test_the_p_value_of_bleu_is_that_of_sacrebleus_randomization_test() -> None:
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    from llmkit.metrics.text import score

    rng = random.Random(7)
    words = ["the", "model", "runs", "fast,", "well.", "GPU", "今天", "天气", "很好", "。", "3.14"]
    references = [" ".join(rng.choices(words, k=rng.randint(4, 40))) for _ in range(300)]

    def model(noise: float) -> list[str]:
        return [" ".join(w if rng.random() > noise else rng.choice(words) for w in text.split()) for text in references]

    systems = [("a", model(0.30)), ("b", model(0.32))]
    metric = BLEU(tokenize="zh", force=True, references=[references])
    _, scores = PairedTest(systems, {"BLEU": metric}, None, "ar", n_samples=2000)()
    tallies = [score(texts, references).tallies["bleu"] for _, texts in systems]
    found = paired(*tallies, resamples=2000)
    assert 0.02 < found.p_value < 0.9, "or the test would show nothing"
    assert found.p_value == pytest.approx(scores["BLEU"][1].p_value, abs=0.03)


def _normal_cdf(value: float) -> float:
    from math import erf

    return 0.5 * (1 + erf(value / 2**0.5))


def test_what_was_never_seen_in_forty_samples_is_not_said_to_be_impossible() -> None:
    never, always = (mean("refusals", np.full(40, value)) for value in (0.0, 100.0))
    assert bootstrap.intervals([never])["refusals"] == pytest.approx((0, 100 * (1 - 0.025 ** (1 / 40))))
    assert bootstrap.intervals([always])["refusals"] == pytest.approx((100 * 0.025 ** (1 / 40), 100))
