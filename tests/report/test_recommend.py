"""The advice: small where it can be told to be as good, silent about noise, and never what lost the fine-tune or failed."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.report import recommend
from llmkit.report.recommend import choose, front
from tests.report import evaluations


def row(megabytes: float, score: float, *, spread: float = 2.0, **more: Any) -> dict[str, Any]:
    known = {"metrics": {"rougeL": score}, "intervals": {"rougeL": [score - spread, score + spread]}}
    return {**known, "size_bytes": megabytes * 1e6, "retention": 1.0, "kl": 0.01, "tokens_per_second": 30.0, **more}


def report(**models: dict[str, Any]) -> dict[str, Any]:
    merged = row(560, 20.0, kl=0.0)
    return {
        "reference": "merged",
        "n_samples": 100,
        "models": {"base": row(540, 5.0, retention=None), "merged": merged, **models},
    }


def test_the_real_table_gets_the_advice_of_its_readme() -> None:
    choice = choose(evaluations.report())
    assert choice.name == "q4_k_m+lora"
    assert choice.because[0] == "Ship q4_k_m+lora (261 MB, 46 % of merged): one of the smallest that keep what merged does."
    assert "q5_k_m is of the same size within 5 %" in choice.because[1]
    assert "may be noise" in choice.because[2]
    assert choice.refused == {"q4_k_m": "lost the fine-tune (retention 0.705, the floor is 0.8)"}


def test_a_difference_that_may_be_noise_counts_as_none() -> None:
    assert choose(report(q8_0=row(300, 20.5), q4_0=row(200, 17.0))).name == "q4_0", "17±2 and 20±2 overlap"
    clear = choose(report(q8_0=row(300, 20.5), q4_0=row(200, 15.0)))
    assert clear.name == "q8_0"
    assert clear.refused == {"q4_0": "answers worse: ROUGE-L 5.0 points below merged, more than chance"}


def test_a_fall_of_less_than_half_a_point_is_let_pass_however_certain() -> None:
    choice = choose(report(q4_0=row(200, 19.6, spread=0.01), merged=row(560, 20.0, spread=0.01, kl=0.0)))
    assert choice.name == "q4_0"
    assert "0.4 points less, within the half point" in " ".join(choice.because)


def test_paired_differences_say_more_than_intervals() -> None:
    """Intervals of 17 and 20 overlap; sample by sample the fall may still be certain."""
    assert choose(report(q8_0=row(300, 20.0), q4_0=row(200, 17.0, drops={"rougeL": [3.0, 1.2, 4.8]}))).name == "q8_0"
    assert choose(report(q8_0=row(300, 20.0), q4_0=row(200, 15.0, drops={"rougeL": [5.0, -0.1, 9.0]}))).name == "q4_0"


@pytest.mark.parametrize("retention", [0.79, -3.0, float("nan")])
def test_what_lost_the_fine_tune_is_never_shipped(retention: float) -> None:
    choice = choose(report(q8_0=row(300, 20.0), q4_0=row(200, 25.0, retention=retention)))
    assert choice.name == "q8_0"
    assert "lost the fine-tune" in choice.refused["q4_0"]


def test_what_failed_the_gate_is_never_shipped_and_what_it_cannot_tell_is_said() -> None:
    found = report(q8_0=row(300, 20.0), q4_0=row(200, 20.0))
    for verdict, name in (("fail", "q8_0"), ("unknown", "q4_0"), ("pass", "q4_0")):
        found["gate"] = {"verdict": verdict, "checks": [{"model": "q4_0", "metric": "rougeL", "verdict": verdict}]}
        choice = choose(found)
        assert choice.name == name
        assert ("could not tell" in choice.because[-1]) == (verdict == "unknown")


def test_a_score_that_is_no_number_is_never_shipped() -> None:
    for score in (float("nan"), None, "20"):
        assert choose(report(q8_0=row(300, 20.0), q4_0=row(200, 20.0) | {"metrics": {"rougeL": score}})).name == "q8_0"


def test_the_reference_itself_is_shipped_where_no_smaller_one_keeps_it() -> None:
    choice = choose(report(q4_0=row(200, 20.0, retention=0.1)))
    assert choice.name == "merged"
    assert choice.because[0] == "Ship merged itself (560 MB): no smaller variant keeps what it does."


def test_where_nothing_keeps_it_the_advice_is_none() -> None:
    found = report(q4_0=row(200, 20.0, retention=0.1))
    found["gate"] = {"checks": [{"model": "merged", "metric": "rougeL", "verdict": "fail"}]}
    choice = choose(found)
    assert choice.name is None
    assert choice.because == ("Ship none of these: not one keeps what it should.",)


def test_of_equal_sizes_the_one_nearest_to_the_reference_is_shipped() -> None:
    assert choose(report(a=row(200, 20.0, kl=0.3), b=row(209, 18.5, kl=0.002))).name == "b"
    assert choose(report(a=row(200, 20.0, kl=0.3), b=row(211, 18.5, kl=0.002))).name == "a"
    assert choose(report(a=row(200, 20.0, kl=0.3), b=row(209, 18.5, kl=None))).name == "a"


def test_a_faster_one_is_mentioned() -> None:
    told = " ".join(choose(report(q8_0=row(300, 20.0, tokens_per_second=60.0), q4_0=row(200, 20.0))).because)
    assert "q8_0 is 2.0 times as fast (300 MB)" in told
    assert "as fast" not in " ".join(choose(report(q4_0=row(200, 20.0))).because)


def test_without_intervals_or_retention_the_advice_says_so() -> None:
    bare = {"metrics": {"rougeL": 12.0}, "size_bytes": 2e8}
    told = choose(report(q4_0=bare))
    assert told.name == "q4_0"
    assert "nothing says whether that is noise" in " ".join(told.because)
    assert "was not measured" in told.because[-1]


def test_with_nothing_to_choose_between_there_is_no_advice() -> None:
    for found in ({}, report(), {"models": {"a": row(1, 2.0)}, "reference": "a"}, report(api=row(0, 30.0))):
        assert choose(found).because == ()


def test_a_base_that_was_only_quantized_is_its_own_reference() -> None:
    found = report(q8_0=row(300, 5.0, retention=None)) | {"reference": "base"}
    del found["models"]["merged"]
    choice = choose(found)
    assert choice.name == "q8_0"
    assert "was not measured" not in " ".join(choice.because)


POINTS = st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: dict[str, tuple[float, float]]) -> None:
    def beats(one: str, other: str) -> bool:
        (cost, score), (dear, poor) = points[one], points[other]
        return cost <= dear and score >= poor and (cost, score) != (dear, poor)

    assert front(points) == {name for name in points if not any(beats(other, name) for other in points)}


ODD = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3), st.lists(st.floats(), max_size=3), st.just(10**400))
ROW = st.dictionaries(
    st.sampled_from(["metrics", "intervals", "retention", "kl", "size_bytes", "tokens_per_second", "drops"]), ODD
)


@given(
    st.dictionaries(st.sampled_from(["base", "merged", "q8_0", "q4_0"]), st.one_of(ODD, ROW)), st.sampled_from(["merged", 7])
)
def test_any_report_gets_an_answer(models: dict[str, Any], reference: Any) -> None:
    found = report(**{})
    for name, change in models.items():
        found["models"][name] = {**row(200, 20.0), **change} if isinstance(change, dict) else change
    choice = choose(found | {"reference": reference})
    assert choice.name is None or choice.name in found["models"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10), st.floats(1, 999), st.floats(-1, 2)), min_size=1, max_size=6))
def test_what_is_shipped_holds_every_condition(rows: list[tuple[float, float, float, float]]) -> None:
    models = {f"v{n}": row(size, score, spread=spread, retention=kept) for n, (score, spread, size, kept) in enumerate(rows)}
    found = report(**models)
    name = choose(found).name
    assert name is not None, "the reference keeps what it does"
    shipped = found["models"][name]
    assert shipped["retention"] >= 0.8
    drop, certain = recommend.told_apart(name, found, "rougeL")
    assert not (certain and drop > recommend.TOLERANCE)
    for other, entry in product(models, [found["models"]]):
        smaller = entry[other]["size_bytes"] * 1.05 < shipped["size_bytes"]
        assert not smaller or other in choose(found).refused


def test_a_file_that_changed_after_it_was_published_is_not_shipped() -> None:
    choice = choose(report(q8_0=row(290, 20.0, changed=True)))
    assert choice.name == "merged"
    assert choice.refused == {"q8_0": "its files are not those that were published"}
