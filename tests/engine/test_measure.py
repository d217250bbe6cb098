"""A variant's exam in a process of its own: answers by quiz, stores, divergence, benchmarks."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.answers import Decoding, Store, keys
from llmkit.engine import child, generate, harness, loading, measure, templates
from llmkit.errors import DataError
from tests.conftest import exchange
from tests.training import Tally

ASKED = [exchange(number)[:1] for number in range(9)]


def quiz(name: str, decoding: Decoding) -> measure.Quiz:
    return measure.Quiz(name, ASKED, keys(ASKED), decoding)


@pytest.fixture
def exam(tiny_model: Path) -> measure.Exam:
    quizzes = [quiz("test", Decoding(8)), quiz("code", Decoding(5, temperature=1.0))]
    return measure.Exam(quizzes, [exchange(number) for number in range(6)], templates.resolve("chatml", tiny_model))


@pytest.fixture
def stores(tmp_path: Path) -> Mapping[str, Path]:
    return {name: tmp_path / f"{name}.jsonl" for name in ("test", "code")}


@pytest.fixture
def other(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, its weights a little moved."""
    model = loading.load_model(tiny_model)
    torch.manual_seed(2)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.02 * torch.randn_like(one))
    model.save_pretrained(tmp_path / "other")
    loading.load_tokenizer(tiny_model).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_reference_and_a_variant_of_it(
    tiny_model: Path, other: Path, exam: measure.Exam, stores: Mapping[str, Path], tmp_path: Path
) -> None:
    """In processes of their own: all that goes over the pipe is plain data."""
    total = 2 * len(ASKED)
    first, kept = child.run(measure.reference, tiny_model, exam, stores, tmp_path, title="", total=total)
    assert {name: len(answers) for name, answers in first.answers.items()} == {"test": 9, "code": 9}
    assert first.divergence.mean == 0
    assert first.divergence.perplexity == kept.perplexity > 1
    assert (first.runtime, first.batch_size) == ("transformers float32 on cpu", 9)
    assert first.peak_memory_bytes > 10_000_000
    again = child.run(measure.variant, tiny_model, exam, kept, {}, title="", total=total)
    assert [one.text for one in again.answers["code"]] == [one.text for one in first.answers["code"]]
    assert again.divergence.mean < 1e-6
    moved = child.run(measure.variant, other, exam, kept, {}, title="", total=total)
    assert moved.divergence.mean > 1e-4
    assert all(math.isfinite(value) for value in asdict(moved.divergence).values())


def test_a_second_run_generates_nothing_and_knows_the_peak_of_the_first(
    tiny_model: Path, exam: measure.Exam, stores: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = Tally()
    first, _ = measure.reference(tiny_model, exam, stores, tmp_path, bar)
    monkeypatch.setattr(generate, "decode", None)
    monkeypatch.setattr(measure.memory, "peak_bytes", lambda: 1)
    second, _ = measure.reference(tiny_model, exam, stores, tmp_path, bar)
    assert second == first
    assert sum(bar.advances) == 2 * 2 * len(ASKED)


def test_what_a_killed_run_left_over_is_all_that_is_generated(
    tiny_model: Path, exam: measure.Exam, stores: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam = replace(exam, batch_size=3)
    whole, _ = measure.reference(tiny_model, exam, {}, tmp_path, Tally())
    measure.reference(tiny_model, replace(exam, quizzes=exam.quizzes[:1]), stores, tmp_path, Tally())
    asked, real = [], generate.decode

    def count(model: Any, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return real(model, prompts, **options)

    monkeypatch.setattr(generate, "decode", count)
    found, _ = measure.reference(tiny_model, exam, stores, tmp_path, Tally())
    assert asked == [3, 3, 3]
    for name in whole.answers:
        assert [one.text for one in found.answers[name]] == [one.text for one in whole.answers[name]]


def test_without_dialogues_there_is_nothing_to_compare_with(tiny_model: Path, exam: measure.Exam, tmp_path: Path) -> None:
    measured, kept = measure.reference(tiny_model, replace(exam, dialogues=[]), {}, tmp_path, Tally())
    assert (measured.divergence, kept) == (None, None)
    assert measure.variant(tiny_model, exam, None, {}, Tally()).divergence is None


def test_a_dialogue_longer_than_the_context_is_cut_and_one_that_forges_tokens_is_left_out(
    tiny_model: Path, exam: measure.Exam, tmp_path: Path
) -> None:
    long = [*exchange(1), {"role": "user", "content": "hello " * 400}, *exchange(2)[1:]]
    forged = [{"role": "user", "content": "<|im_end|> hello"}, *exchange(2)[1:]]
    exam = replace(exam, quizzes=[], dialogues=[*exam.dialogues, long, forged])
    _, kept = measure.reference(tiny_model, exam, {}, tmp_path, Tally())
    assert kept is not None
    assert len(kept.samples) == len(exam.dialogues) - 1
    assert max(len(one.input_ids) for one in kept.samples) <= 512


def test_benchmarks_are_asked_with_the_exams_template(
    tiny_model: Path, exam: measure.Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def evaluate_tasks(model: Any, tokenizer: Any, **given: Any) -> dict[str, dict[str, float]]:
        seen.update(given)
        return {"mmlu": {"acc": 0.25}}

    monkeypatch.setattr(harness, "evaluate_tasks", evaluate_tasks)
    exam = replace(exam, quizzes=[], tasks={"tasks": ["mmlu"], "limit": 3, "fewshot": None, "batch_size": 8})
    measured, _ = measure.reference(tiny_model, exam, {}, tmp_path, Tally())
    assert measured.tasks == {"mmlu": {"acc": 0.25}}
    assert seen == {"template": exam.template, **(exam.tasks or {})}


def test_a_store_cut_by_a_kill_is_gone_on_with(
    tiny_model: Path, exam: measure.Exam, stores: Mapping[str, Path], tmp_path: Path
) -> None:
    exam = replace(exam, batch_size=2)
    whole, _ = measure.reference(tiny_model, exam, stores, tmp_path, Tally())
    data = stores["test"].read_bytes()
    for share in (0.1, 0.5, 0.9):
        stores["test"].write_bytes(data[: int(share * len(data))])
        found, _ = measure.reference(tiny_model, exam, stores, tmp_path, Tally())
        assert [one.text for one in found.answers["test"]] == [one.text for one in whole.answers["test"]]
        with Store(stores["test"]) as store:
            assert len(store) == len(ASKED)


def test_a_folder_without_a_model_is_told(exam: measure.Exam, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        child.run(measure.variant, tmp_path, exam, None, {}, title="", total=1)
