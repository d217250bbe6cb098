"""What is measured anew, and what is not: whatever can change an answer or a number is part of what it is kept under."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit import answers
from llmkit.answers import Answer, Decoding, Store
from llmkit.engine import child, measure
from llmkit.engine.templates import ChatTemplate
from llmkit.evaluation.measuring import DIALOGUES, Bench, Plan, Quiz
from llmkit.evaluation.variants import Folder

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(3)]
PLAN = Plan({DIALOGUES: Quiz(PROMPTS, answers.keys(PROMPTS), Decoding(8))}, [], None, None, "transformers")
TEMPLATE = ChatTemplate("model", "{{ messages }}", "<eos>")


class Runs:
    """Stands for the processes that measure, and counts them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, function: Any, *args: Any, title: str, total: int | None = None) -> Any:
        self.names.append(title.removeprefix("eval "))
        stores: Mapping[str, Path] = next(one for one in args if isinstance(one, dict))
        found = dict.fromkeys(PLAN.quizzes[DIALOGUES].keys, Answer("said", 1, stopped=True, seconds=0.1))
        with Store(stores[DIALOGUES]) as store:
            store.put(found)
        measured = measure.Measured({DIALOGUES: list(found.values())}, 1, None, "transformers", 1, tasks={})
        return (measured, None) if function is measure.reference else measured


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(child, "run", found)
    return found


@pytest.fixture
def variants(tmp_path: Path) -> Sequence[Folder]:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/tokenizer.json").write_text("{}", "utf-8")
    return [Folder(name, tmp_path / name, 10, f"fingerprint of {name}") for name in ("base", "merged")]


def measured(tmp_path: Path, variants: Sequence[Folder], *, plan: Plan = PLAN, template: ChatTemplate = TEMPLATE) -> None:
    bench = Bench(plan, variants[1], template, scratch=tmp_path / "scratch", cache=tmp_path / "cache")
    assert list(bench.rows(variants)) == ["base", "merged"]


def test_nothing_is_measured_twice(tmp_path: Path, variants: Sequence[Folder], runs: Runs) -> None:
    measured(tmp_path, variants)
    assert runs.names == ["merged", "base"]
    measured(tmp_path, variants)
    assert runs.names == ["merged", "base"]


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": replace(PLAN, dialogues=[PROMPTS[0]])},
        {"plan": replace(PLAN, batch_size=2)},
        {"plan": replace(PLAN, tasks={"tasks": ["mine.yaml"]})},
        {"plan": replace(PLAN, tasks_content="the task's file holds something else")},
        {"plan": replace(PLAN, quizzes={DIALOGUES: Quiz(PROMPTS, answers.keys(PROMPTS), Decoding(9))})},
        {"template": replace(TEMPLATE, text="{{ other }}")},
        {"template": replace(TEMPLATE, eos="<other>")},
    ],
)
def test_what_can_change_a_number_has_it_measured_anew(
    tmp_path: Path, variants: Sequence[Folder], runs: Runs, changes: dict[str, Any]
) -> None:
    measured(tmp_path, variants)
    measured(tmp_path, variants, **changes)
    assert runs.names == ["merged", "base"] * 2


def test_another_tokenizer_of_the_reference_has_every_folder_asked_anew(
    tmp_path: Path, variants: Sequence[Folder], runs: Runs
) -> None:
    """They are all asked with its tokens, the base too, whose own files are what they were."""
    measured(tmp_path, variants)
    (tmp_path / "merged/tokenizer.json").write_text('{"added": 1}', "utf-8")
    measured(tmp_path, variants)
    assert runs.names == ["merged", "base"] * 2


def test_a_changed_model_is_measured_anew(tmp_path: Path, variants: Sequence[Folder], runs: Runs) -> None:
    measured(tmp_path, variants)
    measured(tmp_path, [replace(variants[0], fingerprint="another"), variants[1]])
    assert runs.names == ["merged", "base", "merged", "base"]  # what the base is compared with is not kept
