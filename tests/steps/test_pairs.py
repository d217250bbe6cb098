"""The pairs step: its config, and each way to make pairs from dataset to dataset."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit import pipeline, progress, recipe
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.data.record import Record, read_records, write_records
from llmkit.errors import DataError, RecipeError
from llmkit.pipeline import lay_out
from llmkit.steps import pairs

Step = Callable[..., tuple[Facts, dict[str, list[Record]]]]


def chat(question: str, answer: str, **more: Any) -> Record:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Record(messages, **{"source": f"{question}.jsonl:1", **more})


@pytest.fixture
def step(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Step:
    """Run the step on these records: (facts, {split: records})."""

    def run(
        config: Mapping[str, Any], train: Sequence[Record], valid: Sequence[Record] = (), **inputs: Artifact
    ) -> tuple[Facts, dict[str, list[Record]]]:
        given, out = tmp_path / "given", tmp_path / "out"
        for folder in (given, out):
            folder.mkdir()
        for split, records in {"train": train, "valid": valid, "test": [chat("t", "test", score=0)]}.items():
            write_records(given / f"{split}.jsonl", records)
        facts = pairs.run(pairs.Config(**config), {"dataset": artifact_of(given, Kind.DATASET), **inputs}, out)
        assert (out / "test.jsonl").read_bytes() == (given / "test.jsonl").read_bytes()
        written = {split: list(read_records(out / f"{split}.jsonl")) for split in ("train", "valid")}
        assert facts["read"] == len(train) + len(valid) == facts["paired"] + facts["unpaired"] + facts["equal"]
        assert sum(facts["pairs"].values()) == sum(map(len, written.values()))
        assert all(record.rejected is not None and record.pair for split in written.values() for record in split)
        return facts, written

    return run


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the step says."""
    said: list[str] = []
    silent = progress._sink
    progress.install(SimpleNamespace(open=silent.open, close=silent.close, note=said.append))  # type: ignore[arg-type]
    yield said
    progress.install(silent)


def test_ratings_become_pairs_and_what_has_no_counterpart_is_left_out(step: Step) -> None:
    train = [
        chat("Why?", "It rains.", score=5),
        chat("why", "No idea at all.", score=2),
        chat("Why?", "Go away.", score=1),
        chat("How?", "Badly.", score=0),
        chat("When?", "Soon."),
        chat("Who?", "Me.", rejected="You."),
    ]
    facts, written = step({"rating": "stars"}, train, [chat("How?", "Well.", score=1)])
    assert facts["pairs"] == {"explicit": 1, "rating": 2}
    assert (facts["paired"], facts["unpaired"], facts["equal"]) == (4, 3, 0)
    found = [(one.messages[-1]["content"], one.rejected, one.pair) for one in written["train"]]
    assert found == [
        ("It rains.", "Go away.", "rating"),
        ("It rains.", "No idea at all.", "rating"),
        ("Me.", "You.", "explicit"),
    ]
    assert written["valid"] == []


def test_edits_are_pairs_and_what_nobody_edited_is_left_out(step: Step) -> None:
    train = [
        chat("a", "Right.", rejected="Rigth.", pair="edit"),
        chat("b", "Plain."),
        chat("c", "One", rejected="One", pair="edit"),
    ]
    facts, written = step({"edited": "fixed"}, train)
    assert facts["pairs"] == {"edit": 1}
    assert (facts["unpaired"], facts["equal"]) == (1, 1)
    assert written["train"] == train[:1]


def test_what_is_left_without_an_edit_may_be_filled_by_shuffling(step: Step) -> None:
    train = [chat("a", "Right.", rejected="Rigth.", pair="edit"), chat("b", "Plain."), chat("c", "Other.", rejected="Bad.")]
    facts, written = step({"edited": "fixed", "rejected": "shuffle"}, train, [chat("d", "Alone.")])
    assert facts["pairs"] == {"edit": 1, "explicit": 1, "shuffle": 2}
    assert facts["unpaired"] == 0
    assert written["train"][1].rejected in {"Right.", "Other."}
    assert written["valid"][0].rejected in {"Right.", "Plain.", "Other."}


def test_the_base_s_own_answers_are_rejected_unless_they_say_the_same(
    step: Step, tiny_model: Path, artifact_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.engine import child

    asked: list[Any] = []

    def run(function: object, folder: object, exam: Any, *_: object, **__: object) -> SimpleNamespace:
        [quiz] = exam.quizzes
        asked.extend(quiz.prompts)
        return SimpleNamespace(answers={quiz.name: [SimpleNamespace(text=text) for text in (" Wrong. ", "right", "")]})

    monkeypatch.setattr(child, "run", run)
    train = [chat("a", "Yes."), chat("b", "Right."), chat("c", "No.", rejected="Nay."), chat("d", "Perhaps.")]
    base = artifact_of(tiny_model, Kind.MODEL)
    facts, written = step({"rejected": "generate", "template": "chatml"}, train, base=base)
    assert [prompt[0]["content"] for prompt in asked] == ["a", "b", "d"]
    assert [(one.rejected, one.pair) for one in written["train"]] == [("Wrong.", "generated"), ("Nay.", "explicit")]
    assert (facts["pairs"], facts["unpaired"]) == ({"explicit": 1, "generated": 1}, 2)


def test_doubtful_pairs_are_counted_and_told(step: Step, notes: list[str]) -> None:
    train = [
        chat("a", "Short.", rejected="So long that a model would learn to be brief."),
        chat("b", "今天天气很好，谢谢你的关心。", rejected="今天天气很好谢谢你的关心"),
        chat("c", "Same.", rejected="Same. "),
    ]
    facts, written = step({"rejected": "shuffle"}, train)
    assert (facts["near_equal"], facts["rejected_longer"], facts["equal"]) == (1, 1, 1)
    assert len(written["train"]) == 2
    assert any("over 3 times as long" in note and "a.jsonl:1" in note for note in notes)
    assert any("1 pairs have two nearly equal answers" in note for note in notes)


def test_a_field_that_gives_no_pair_is_told(step: Step, notes: list[str]) -> None:
    step({"edited": "fixd", "rejected": "shuffle"}, [chat("a", "Yes."), chat("b", "No.")])
    assert any("'fixd' gave no pair" in note for note in notes)


@pytest.mark.parametrize(
    ("config", "train", "reason"),
    [
        ({"rating": "stars"}, [chat("a", "Yes.")], "no record is rated by 'stars'"),
        ({"rating": "stars"}, [chat("a", "Yes.", score=1)], "no prompt has two answers with different ratings"),
        ({"edited": "fixed"}, [chat("a", "Yes.")], "no record has an answer corrected by 'fixed'"),
        ({"edited": "fixed"}, [chat("a", "Yes.", rejected="Yes.")], "says the same as the chosen one"),
        ({"rejected": "shuffle"}, [], "no training record"),
    ],
)
def test_no_pair_to_train_on_is_an_error_that_says_why(
    config: dict[str, str], train: list[Record], reason: str, step: Step
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        step(config, train)
    assert caught.value.next


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "one of rejected, rating or edited"),
        ({"rating": "a", "edited": "b"}, "rating and edited exclude each other"),
        ({"rating": "a", "rejected": "shuffle"}, "rating and rejected exclude each other"),
        ({"rating": ""}, "at least 1 character"),
        ({"rejected": "invent"}, "'shuffle' or 'generate'"),
        ({"rejected": "shuffle", "max_rejected_ratio": 0}, "greater than 0"),
    ],
)
def test_a_config_names_one_origin(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        pairs.Config(**config)
    whole = {"name": "r", "model": "m", "data": {"sources": [{"path": "x.jsonl"}], "pairs": config}}
    with pytest.raises(RecipeError, match=message):
        recipe.validate(recipe.Recipe, whole, where="r.yaml")


def test_every_option_says_what_it_means() -> None:
    assert all(field.description for field in pairs.Config.model_fields.values())


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        ({"rejected": "shuffle"}, {"dataset"}),
        ({"rating": "stars"}, {"dataset"}),
        ({"edited": "fixed"}, {"dataset"}),
        ({"edited": "fixed", "rejected": "generate"}, {"dataset", "base"}),
    ],
)
def test_only_generating_needs_the_base(config: dict[str, str], inputs: set[str], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n", "utf-8")
    whole = {
        "name": "r",
        "model": str(tiny_model),
        "data": {"sources": [{"path": str(tmp_path / "x.jsonl")}], "pairs": config},
        "finetune": {"objective": "orpo", "template": "chatml"},
    }
    nodes = {node.name: node for node in lay_out(recipe.validate(recipe.Recipe, whole, where="r.yaml")).nodes}
    assert set(nodes["pairs"].inputs) == inputs
    assert nodes["finetune"].inputs["dataset"] == "pairs"


@pytest.mark.parametrize(
    ("pairs", "fields", "origin"),
    [
        ({"rating": "stars"}, [{"stars": 5}, {"stars": 1}], "rating"),
        ({"edited": "better"}, [{"better": "A corrected answer, {n}."}, {}], "edit"),
    ],
)
def test_a_recipe_brings_ratings_and_edits_from_the_raw_lines_to_pairs(
    tiny_model: Path, tmp_path: Path, pairs: dict[str, str], fields: list[dict[str, Any]], origin: str
) -> None:
    lines = []
    for n in range(30):
        for which, extra in enumerate(fields):
            asked = {"role": "user", "content": f"{n * 7919}?"}
            answer = {"role": "assistant", "content": ("good", "bad")[which] + f" answer {n * 104729}"}
            filled = {key: value.format(n=n) if isinstance(value, str) else value for key, value in extra.items()}
            lines.append(json.dumps({"messages": [asked, answer], **filled}))
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    raw = {
        "name": "rated",
        "model": str(tiny_model),
        "data": {"sources": [{"path": str(tmp_path / "chats.jsonl")}], "pairs": pairs},
        "clean": {"min_turns": 2},
        "finetune": {"objective": "orpo", "template": "chatml"},
    }
    chosen = recipe.validate(recipe.Recipe, raw, where="test")
    done = pipeline.execute(chosen, tmp_path / "run", targets=["pairs"])
    assert set(done[-1].artifact.facts["pairs"]) == {origin}
    for record in read_records(done[-1].artifact.path / "train.jsonl"):
        assert record.pair == origin
        assert record.rejected
        assert record.messages[-1]["content"].startswith("good" if origin == "rating" else "A corrected")
