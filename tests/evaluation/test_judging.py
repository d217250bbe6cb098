"""A gate held against whole reports on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import UsageError
from llmkit.evaluation import judging
from llmkit.evaluation.settings import Gate
from llmkit.metrics import text

REFERENCES = [
    f"the {colour} {animal} number {n}" for n in range(10) for colour in ("red", "blue") for animal in ("cat", "dog", "owl")
]
POOR = ["something else entirely" if n % 3 == 0 else one for n, one in enumerate(REFERENCES)]


def written(folder: Path, answers: Mapping[str, Sequence[str]], **row: Any) -> Path:
    """A report of these models; `row` is what stands in each of their entries."""
    folder.mkdir()
    models = {}
    for name, texts in answers.items():
        scores = text.score(texts, REFERENCES)
        models[name] = {"metrics": scores.metrics, "size_bytes": 1000, "tokens_per_second": 10.0, "retention": 1.0, **row}
    settings = {"decoding": "greedy", "max_new_tokens": 8}
    report = {"reference": "merged", "settings": settings, "signatures": scores.signatures, "models": models}
    (folder / "report.json").write_text(json.dumps(report), "utf-8")
    lines = [
        {
            "id": str(n),
            "prompt": [{"role": "user", "content": f"q {n}"}],
            "reference": reference,
            "answers": {k: v[n] for k, v in answers.items()},
        }
        for n, reference in enumerate(REFERENCES)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def test_a_variant_that_lost_much_fails_and_one_that_says_the_same_passes(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", {"base": POOR, "merged": REFERENCES, "q8_0": REFERENCES, "q2_k": POOR})
    verdict = judging.judge(Gate(baseline="merged", max_drop={"rougeL": 1.0}), folder, None, [])
    told = {(check.model, check.kind): check.verdict for check in verdict.checks}
    assert told["q8_0", "max_drop"] == "pass"
    assert told["q2_k", "max_drop"] == "fail"
    assert verdict.exit_code == 1
    assert not any(model in ("base", "merged") for model, _ in told)
    assert "q2_k" in judging.failure(verdict.to_json())


def test_variants_chosen_are_the_only_ones_that_are_judged(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", {"merged": REFERENCES, "q8_0": REFERENCES, "q2_k": POOR})
    gate = Gate(baseline="merged", max_drop={"rougeL": 1.0}, variants=("q8_0",))
    assert judging.judge(gate, folder, None, []).verdict == "pass"


def test_an_earlier_report_is_a_baseline_row_by_row(tmp_path: Path) -> None:
    before = written(tmp_path / "before", {"merged": REFERENCES, "q8_0": REFERENCES})
    after = written(tmp_path / "after", {"merged": REFERENCES, "q8_0": POOR})
    verdict = judging.judge(Gate(baseline=str(before), max_drop={"bleu": 1.0}), after, before, [])
    assert {check.model: check.verdict for check in verdict.checks if check.kind == "max_drop"} == {
        "merged": "pass",
        "q8_0": "fail",
    }


def test_an_earlier_report_of_other_prompts_gives_no_verdict(tmp_path: Path) -> None:
    before, after = (written(tmp_path / name, {"merged": REFERENCES}) for name in ("before", "after"))
    lines = (before / "samples.jsonl").read_text("utf-8").replace("q 7", "another question")
    (before / "samples.jsonl").write_text(lines, "utf-8")
    verdict = judging.judge(Gate(baseline=str(before), max_drop={"bleu": 1.0}), after, before, [])
    assert (verdict.verdict, verdict.exit_code) == ("unknown", 2)
    assert "prompts of 1 samples differ" in judging.failure(verdict.to_json())


def test_sizes_speeds_and_retention_are_limits_too(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", {"merged": REFERENCES, "q8_0": REFERENCES}, retention=0.5)
    gate = Gate(max_size="999", min_tokens_per_second=11, min={"rougeL": 99.0}, max={"repetition": 99.0})
    told = {check.kind: check.verdict for check in judging.judge(gate, folder, None, []).checks if check.model == "q8_0"}
    assert told == {
        "floor": "pass",
        "ceiling": "pass",
        "max_size": "fail",
        "min_tokens_per_second": "fail",
        "min_retention": "fail",
    }


def test_a_file_that_changed_after_export_fails_whatever_it_scores(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", {"merged": REFERENCES, "q8_0": REFERENCES})
    verdict = judging.judge(Gate(), folder, None, ["q8_0"])
    assert verdict.verdict == "fail"
    assert "not those that were published" in judging.failure(verdict.to_json())


@pytest.mark.parametrize(
    ("gate", "what"),
    [
        (Gate(baseline="merged", max_drop={"rougeLL": 1.0}), "did you mean 'rougeL'"),
        (Gate(max={"perplexitty": 1.0}), "did you mean 'perplexity'"),
        (Gate(baseline="mergd", max_drop={"bleu": 1}), "choose from base, merged"),
        (Gate(variants=("q4",)), "choose from base, merged"),
    ],
)
def test_a_gate_that_names_what_is_not_measured_is_refused_before_any_work(gate: Gate, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        judging.check(gate, ["base", "merged"], sensitive=False)
    assert what in caught.value.next


def test_a_drop_without_a_baseline_is_no_gate() -> None:
    with pytest.raises(ValueError, match="needs a baseline"):
        Gate(max_drop={"bleu": 1.0})


def test_the_reference_is_at_no_distance_from_itself(tmp_path: Path) -> None:
    """Nobody measures it: a ceiling on KL would never be known to hold otherwise."""
    divergence = {"mean": 0.01, "p99": 0.2, "same_top": 0.98}
    folder = written(tmp_path / "r", {"merged": REFERENCES, "q8_0": REFERENCES}, kl=0.01, divergence=divergence)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    report["models"]["merged"] |= {"kl": None, "divergence": None}
    (folder / "report.json").write_text(json.dumps(report), "utf-8")
    assert judging.judge(Gate(max={"kl": 0.05, "p99": 0.5}, min={"same_top": 0.9}), folder, None, []).verdict == "pass"
    assert judging.judge(Gate(max={"kl": 0.005}), folder, None, []).verdict == "fail"


def test_a_drop_of_listed_words_is_judged_where_there_are_lists(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", {"merged": REFERENCES, "q8_0": [f"{one} damn" for one in REFERENCES]})
    gate = Gate(baseline="merged", max_drop={"sensitive": 1.0})
    assert judging.judge(gate, folder, None, [], is_sensitive=lambda text: "damn" in text).verdict == "fail"
    with pytest.raises(UsageError, match="'sensitive', which is no metric"):
        judging.check(gate, None, sensitive=False)


def test_a_gate_without_limits_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="no limits"):
        judging.check(Gate(min_retention=None), ["merged"], sensitive=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_limit_is_a_finite_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Gate(baseline="merged", max_drop={"bleu": value})


def test_a_row_is_a_baseline_though_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merged").mkdir()
    assert not judging.is_folder("merged")
    (tmp_path / "merged/report.json").write_text("{}", "utf-8")
    assert judging.is_folder("merged")


def test_answers_that_all_failed_are_not_the_same_answers(tmp_path: Path) -> None:
    silent = [""] * len(REFERENCES)
    folder = written(tmp_path / "r", {"merged": silent, "nf4": silent}, failed=len(REFERENCES))
    verdict = judging.judge(Gate(baseline="merged", max_drop={"rougeL": 1.0}), folder, None, [])
    assert verdict.verdict == "fail"
    assert "answered no prompt" in judging.failure(verdict.to_json())
