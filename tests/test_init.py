"""`llmkit init`: the recipe it writes is valid, says why, and fits the data."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import pipeline, recipe
from llmkit.cli import app
from llmkit.commands import recipes, starting
from llmkit.errors import DataError, LlmkitError, MachineError, UsageError
from llmkit.starting import choices, writing
from llmkit.starting.choices import Choice
from llmkit.starting.survey import survey
from tests.recipe_data import CITIES, chat, chats, pairs, programs, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path


def written(here: Path, records: list[dict[str, Any]], model: str = "Qwen/Qwen3-0.6B") -> recipe.Recipe:
    """The recipe that `init --from` makes for these records."""
    write(here / "data.jsonl", records)
    starting.init(Path("llmkit.yaml"), "data.jsonl", model, force=True, ask=None)
    return recipe.load(here / "llmkit.yaml")


def asked(*answers: str) -> starting.Ask:
    """Someone at the terminal; an empty answer takes what is offered."""
    left = list(answers)

    def ask(question: str, default: str) -> str:
        return left.pop(0) or default

    return ask


def test_dialogues_become_sft_and_pairs_become_orpo(here: Path) -> None:
    found = written(here, chats())
    assert found.finetune
    assert (found.finetune.objective, found.data and found.data.pairs) == ("sft", None)
    found = written(here, pairs())
    assert found.finetune
    assert found.finetune.objective == "orpo"
    assert found.data
    assert found.data.pairs
    assert found.data.pairs.rejected == "shuffle"  # a third of these records come without a rejected answer


def test_cleaning_keeps_what_the_data_is_made_of(here: Path) -> None:
    long = [chat(f"{city}?", f"{city} " * 300, "And?", "No.") for city in CITIES]
    rules = written(here, long).clean
    assert (rules.min_turns, rules.languages, rules.personal) == (3, ("en",), None)
    assert rules.max_chars >= max(len(f"{city} " * 300) for city in CITIES)
    private = [chat("我的电话是13812345678。", "好的，谢谢您。"), *chats()]
    rules = written(here, private).clean
    assert rules.min_turns == 2
    assert set(rules.languages or ()) == {"zh", "en"}
    assert rules.personal


def test_the_longest_records_fit_max_length(here: Path) -> None:
    lengths = []
    for repeated in (1, 300, 1000):
        found = written(here, [chat(f"{city}?", "好的" * repeated) for city in CITIES]).finetune
        assert found
        lengths.append(found.max_length)
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "model"),
        ("google/gemma-2-9b-it", "model"),
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("google/gemma-2-9b", "gemma"),
        ("who/knows", "chatml"),
    ],
)
def test_a_base_that_is_not_here_gets_its_template_by_name(here: Path, model: str, template: str) -> None:
    found = written(here, chats(), model).finetune
    assert found
    assert found.template == template


def test_a_base_that_is_here_gets_one_that_its_tokens_fit(here: Path, tiny_model: Path) -> None:
    found = written(here, chats(), str(tiny_model)).finetune
    assert found
    assert found.template == "chatml"


def test_every_line_says_why(here: Path) -> None:
    written(here, pairs())
    lines = (here / "llmkit.yaml").read_text("utf-8").splitlines()
    settings_ = [line for line in lines if not line.startswith("#") and not line.endswith(":")]
    assert len(settings_) > 15
    assert all("#" in line for line in settings_ if not line.startswith("name"))


def test_the_next_command_is_said_and_works(here: Path) -> None:
    write(here / "data.jsonl", chats())
    told = CliRunner().invoke(app, ["init", "--from", "data.jsonl", "--model", "Qwen/Qwen3-0.6B"])
    assert told.stdout.splitlines()[-1] == "next: llmkit plan"
    assert recipes.validate("llmkit.yaml").data["steps"][-1] == "eval"
    data = json.loads(CliRunner().invoke(app, ["init", "my chats.yaml", "--from", "data.jsonl", "--json"]).stdout)
    assert data["next"] == "llmkit plan 'my chats.yaml'"
    assert data["recipe"] == recipe.load(here / "my chats.yaml").name == "my-chats"
    assert data["choices"]["finetune.objective"]["value"] == "sft"


def test_off_a_terminal_init_asks_nothing(here: Path) -> None:
    with pytest.raises(UsageError, match="no terminal") as caught:
        starting.init(Path("llmkit.yaml"), None, None, force=False, ask=None)
    assert "--from" in caught.value.next
    assert CliRunner().invoke(app, ["init"], input="").exit_code == 2
    assert not list(here.iterdir())


@pytest.mark.parametrize("job", starting.JOBS)
def test_each_job_that_is_offered_becomes_a_valid_recipe(here: Path, job: str) -> None:
    write(here / "mine.jsonl", chats())
    start = starting.JOBS[job][1]
    has_data = not start or recipe.load(recipe.find(start)).data
    answers = [job, "mine.jsonl", "", "card"] if not start else [job, "", "mine.jsonl"] if has_data else [job, "./mine"]
    starting.init(Path("new.yaml"), None, None, force=False, ask=asked(*answers))
    found, text = recipe.load(here / "new.yaml"), (here / "new.yaml").read_text("utf-8")
    assert found.name == "new"
    assert (found.data.sources[0].path if found.data else found.model) == ("mine.jsonl" if has_data else "./mine")
    assert "llmkit run new.yaml" in text.splitlines()[1]
    if not start:
        assert found.finetune
        assert found.finetune.method == "qlora"
    else:
        kept = [line for line in recipe.find(start).read_text("utf-8").splitlines() if line.startswith("  ") and "#" in line]
        assert all(line in text for line in kept if "sources:" not in line)


def test_an_answer_that_is_none_is_asked_again(here: Path) -> None:
    starting.init(Path("a.yaml"), None, None, force=False, ask=asked("what", "99", "exp", "./mine"))
    assert recipe.load(here / "a.yaml").model == "./mine"


def test_what_is_there_is_never_written_over_nor_asked_about(here: Path) -> None:
    (here / "llmkit.yaml").write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        starting.init(Path("llmkit.yaml"), None, None, force=False, ask=asked())
    assert (here / "llmkit.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.jsonl", None),
        ("empty.jsonl", b""),
        ("bad.jsonl", b"\xff\xfe\x00"),
        ("odd.jsonl", b'{"a": 1}\n' * 3),
        ("no.txt", b"x"),
    ],
)
def test_data_that_cannot_be_read_is_refused_before_anything_is_written(here: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (here / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        starting.init(Path("llmkit.yaml"), name, None, force=False, ask=None)
    assert name in caught.value.where
    assert not (here / "llmkit.yaml").exists()


@pytest.mark.parametrize("suffix", [".json", ".csv", ".jsonl.gz"])
def test_other_kinds_of_files_are_read_too(here: Path, suffix: str) -> None:
    import csv
    import gzip

    records = programs()
    place = here / f"data{suffix}"
    if suffix == ".json":
        place.write_text(json.dumps(records), "utf-8")
    elif suffix == ".csv":
        with place.open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, ["instruction", "input", "output"])
            table.writeheader()
            table.writerows(records)
    else:
        place.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in records).encode()))
    seen = survey(str(place))
    assert (seen.looked_at, seen.code) == (len(records), len(records))
    assert seen.format == "alpaca"


def test_a_survey_counts_what_it_reads(here: Path) -> None:
    write(here / "a.jsonl", [*chats(), *pairs()])
    with (here / "a.jsonl").open("a") as stream:
        stream.write("broken\n\n")
    seen = survey("a.jsonl")
    assert seen.looked_at == len(chats()) + len(pairs())
    assert seen.unreadable == 1
    assert seen.paired == sum("rejected" in one for one in pairs())
    assert sum(seen.languages.values()) == pytest.approx(1)
    assert list(seen.turns) == sorted(seen.turns)
    assert max(seen.turns) == 4


# With lone surrogates, which stand for bytes of a command line that are not UTF-8.
texts = st.text(min_size=1, max_size=40)
ODD = [
    "yes",
    "null",
    "1e5",
    ".5",
    ".inf",
    "0x1f",
    "12:30",
    "2020-01-01",
    "~",
    "<<",
    "=",
    "-",
    "n",
    "a#b",
    "a: b",
    "#",
    "\ud83d",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(path=texts, model=texts, name=st.text("abc-_.", min_size=1, max_size=9).map(lambda text: f"x{text}"), reason=texts)
def test_whatever_is_named_is_written_so_that_it_is_read_back(path: str, model: str, name: str, reason: str) -> None:
    found = [Choice("model", model, reason), Choice("data.sources", [{"path": path}], reason)]
    text = writing.text(name, f"About {path}", found, run=f"llmkit run {path}")
    raw, _ = recipe.parse(text.encode().decode(), where="test")
    assert raw == {"name": name, "model": model, "data": {"sources": [{"path": path}]}}


@given(
    st.sampled_from(
        ["yes", "null", "1e5", ".5", ".inf", "0x1f", "12:30", "2020-01-01", "~", "<<", "=", "-", "n", "a#b", "a: b"]
    )
)
def test_a_text_that_looks_like_something_else_stays_a_text(text: str) -> None:
    choice = Choice("model", text, "")
    assert yaml.safe_load(writing.text("x", "", [choice], run=""))["model"] == text


def kinds() -> Sequence[str]:
    return list(choices.MACHINES)


@pytest.mark.parametrize("machine", kinds())
def test_each_machine_s_recipe_is_valid(here: Path, machine: str) -> None:
    write(here / "data.jsonl", chats())
    found = choices.choose(survey("data.jsonl"), path="data.jsonl", model="a/b", why="asked", machine=machine)
    writing.write(here / "r.yaml", writing.text("r", "", found, run=""), force=False)
    assert pipeline.lay_out(recipe.load(here / "r.yaml"))


def test_an_unwritable_place_is_an_error_of_ours(here: Path) -> None:
    write(here / "data.jsonl", chats())
    (here / "file").write_text("")
    for place in ("file/r.yaml", str(here)):
        with pytest.raises(LlmkitError):
            starting.init(Path(place), "data.jsonl", "a/b", force=True, ask=None)


def test_a_full_disk_costs_nothing_that_was_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object) -> int:
        raise OSError(28, "No space left on device")

    (here / "old.yaml").write_text("name: old\n")
    monkeypatch.setattr(Path, "write_text", full)
    for name in ("old.yaml", "new.yaml"):
        with pytest.raises(MachineError):
            writing.put(Path(name), "name: new\n", force=name == "old.yaml")
    assert (here / "old.yaml").read_text() == "name: old\n"
    assert [path.name for path in here.glob("*.yaml*")] == ["old.yaml"]


@pytest.mark.slow
def test_the_written_recipe_runs(here: Path, tiny_model: Path) -> None:
    write(here / "data.jsonl", pairs())
    small = ["finetune.max_steps=2", "eval.max_samples=2", "eval.max_new_tokens=4", "export.types=[q8_0]"]
    starting.init(Path("llmkit.yaml"), "data.jsonl", str(tiny_model), force=False, ask=None)
    command = [sys.executable, "-m", "llmkit", "run", "llmkit.yaml", *(f"--set={one}" for one in small), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(here / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
