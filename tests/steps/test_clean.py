"""The clean step on small files: where each line ends up, the facts, and what stops it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit import progress
from llmkit.artifact import Facts, Kind, foreign
from llmkit.data.record import read_records
from llmkit.errors import DataError
from llmkit.steps import clean
from llmkit.steps.clean import Config, Split

SIDES = ("train", "valid", "test")


def chat(number: int, turns: int = 4, answer: str = "") -> dict[str, Any]:
    """A dialogue like no other of another number."""
    rng = random.Random(number)
    texts = [answer or "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(turns)]
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return path


def run(out: Path, *sources: Path, **options: Any) -> Facts:
    out.mkdir()
    inputs = {f"source.{number}": foreign(path, Kind.SOURCE) for number, path in enumerate(sources)}
    return clean.run(Config(**options), inputs, out)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Notes:
    """A progress sink that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced = 0

    def open(self, title: str, total: int | None) -> "Notes":
        self.total = total
        return self

    def close(self, bar: object) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int = 1, text: str = "") -> None:
        self.advanced += count


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    sink = Notes()
    monkeypatch.setattr(progress, "_sink", sink)
    return sink


def test_every_line_ends_in_one_place_and_the_counts_add_up(tmp_path, notes: Notes) -> None:
    good = [chat(number) for number in range(60)]
    bad = [b"{broken", {"what": "is this"}]
    dropped = [chat(100, turns=2), chat(101, answer="x" * 300), chat(102, turns=3), good[0], {"messages": []}]
    source = write(tmp_path / "chats.jsonl", [*good, *bad, b"", *dropped])
    facts = run(tmp_path / "out", source, max_bad="5%")
    assert facts["read"] == 67 == facts["kept"] + facts["rejected"] + facts["quarantined"]
    assert (facts["kept"], facts["rejected"], facts["quarantined"], facts["leaks"]) == (60, 5, 2, 0)
    assert facts["reasons"] == {"too_few_turns": 2, "message_too_long": 1, "bad_roles": 1, "duplicate": 1}
    assert sum(facts[side] for side in SIDES) == 60
    assert (facts["valid"], facts["test"], facts["families"], facts["with_rejected"]) == (6, 6, 60, 0)
    kept = [record for side in SIDES for record in read_records(tmp_path / "out" / f"{side}.jsonl")]
    assert sorted(record.source for record in kept) == sorted(f"chats.jsonl:{number}" for number in range(1, 61))
    assert notes.advanced == notes.total == source.stat().st_size


def test_what_is_dropped_can_be_found_again(tmp_path, notes: Notes) -> None:
    odd = b'{"messages": [], "n": 1e400, "big": 123456789012345678901234567890}'
    source = write(tmp_path / "chats.jsonl", [*[chat(number) for number in range(20)], chat(0), b"\xff\xfe broken", b'{"a":'])
    other = write(tmp_path / "more.ndjson", [b'{"messages": []}', odd])
    run(tmp_path / "out", source, other, max_bad=0.2)
    rejected = lines_of(tmp_path / "out" / "rejected.jsonl")
    record = next(read_records(write(tmp_path / "one.jsonl", [chat(0)])))
    assert rejected[0] == {
        "source": "chats.jsonl:21",
        "rule": "exact duplicates",
        "reason": "duplicate",
        "detail": f"says the same as {record.id}",
        "id": record.id,
        "record": {"id": record.id, "source": "chats.jsonl:21", **chat(0)},
    }
    assert rejected[1]["source"] == "more.ndjson:1"
    assert rejected[1]["record"] == {"messages": []}
    quarantined = lines_of(tmp_path / "out" / "quarantined.jsonl")
    assert [entry["source"] for entry in quarantined] == ["chats.jsonl:22", "chats.jsonl:23", "more.ndjson:2"]
    assert quarantined[0]["raw"] == "\\xff\\xfe broken"
    assert "UTF-8" in quarantined[0]["reason"]
    assert [text.split(": ")[1] for text in notes.notes[:3]] == ["chats.jsonl:22", "chats.jsonl:23", "more.ndjson:2"]


def test_the_first_bad_lines_are_named_and_the_rest_counted(tmp_path, notes: Notes) -> None:
    source = write(tmp_path / "chats.jsonl", [*[chat(number) for number in range(20)], *[b"?" * 5000] * 12])
    run(tmp_path / "out", source, max_bad=0.5)
    assert sum("set aside" in text for text in notes.notes) == 5
    assert any("7 more unreadable lines" in text for text in notes.notes)
    assert {len(entry["raw"]) for entry in lines_of(tmp_path / "out" / "quarantined.jsonl")} == {2000}


def test_too_many_bad_lines_stop_the_run_and_name_the_first(tmp_path) -> None:
    source = write(tmp_path / "chats.jsonl", [*[chat(number) for number in range(98)], b"broken", b"broken"])
    before = source.read_bytes()
    with pytest.raises(DataError, match="2 of 100 lines cannot be read") as caught:
        run(tmp_path / "out", source)
    assert caught.value.where == "chats.jsonl:99"
    assert "not JSON" in caught.value.what
    assert source.read_bytes() == before
    assert run(tmp_path / "again", source, max_bad="2%")["quarantined"] == 2


def test_nothing_kept_names_the_reasons_and_the_remedy(tmp_path) -> None:
    source = write(tmp_path / "chats.jsonl", [*[chat(number, turns=2) for number in range(5)], {"messages": []}])
    with pytest.raises(DataError, match=r"empty dataset after cleaning: 6 read, 0 kept \(6 too_few_turns\)") as caught:
        run(tmp_path / "out", source)
    assert "lower clean.min_turns (now 3)" in caught.value.next
    assert run(tmp_path / "again", source, min_turns=2)["kept"] == 5
    empty = write(tmp_path / "empty.jsonl", [b"", b" "])
    with pytest.raises(DataError, match="the files are empty"):
        run(tmp_path / "third", empty)


def test_a_folder_is_read_file_by_file_and_like_names_keep_their_paths(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(tmp_path / "one" / "a.jsonl", [chat(number) for number in range(10)])
    write(tmp_path / "one" / "b.json", [chat(number) for number in range(10, 20)])
    (tmp_path / "one" / "LICENSE.txt").write_text("free")
    write(tmp_path / "two" / "a.jsonl", [chat(number) for number in range(20, 30)])
    facts = run(tmp_path / "out", tmp_path / "one", tmp_path / "two")
    assert facts["kept"] == 30
    names = {record.source.rpartition(":")[0] for side in SIDES for record in read_records(tmp_path / "out" / f"{side}.jsonl")}
    assert names == {"b.json", str(tmp_path / "one" / "a.jsonl"), str(tmp_path / "two" / "a.jsonl")}


def test_a_source_without_dialogues_is_a_data_error(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a,b")
    with pytest.raises(DataError, match="no dialogues here"):
        run(tmp_path / "out", tmp_path / "folder")
    (tmp_path / "folder" / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="the files are empty"):
        run(tmp_path / "out2", tmp_path / "folder" / "a.csv")
    with pytest.raises(DataError, match="nothing to clean"):
        run(tmp_path / "out3")


def test_the_same_input_gives_the_same_bytes_and_another_seed_another_split(tmp_path) -> None:
    source = write(tmp_path / "chats.jsonl", [chat(number) for number in range(50)])
    run(tmp_path / "one", source, seed=7)
    run(tmp_path / "two", source, seed=7)
    run(tmp_path / "other", source, seed=8)
    for name in (*SIDES, "rejected", "quarantined"):
        assert (tmp_path / "one" / f"{name}.jsonl").read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes()
    assert (tmp_path / "one" / "test.jsonl").read_bytes() != (tmp_path / "other" / "test.jsonl").read_bytes()


def test_a_dataset_can_be_cleaned_again_and_rejected_answers_come_along(tmp_path) -> None:
    pairs = [{"prompt": chat(n)["messages"][0]["content"], "chosen": f"yes {n}" * 5, "rejected": f"no {n}"} for n in range(20)]
    facts = run(tmp_path / "one", write(tmp_path / "pairs.jsonl", pairs), min_turns=2)
    assert facts["with_rejected"] == 20
    again = run(tmp_path / "two", tmp_path / "one" / "train.jsonl", min_turns=2)
    assert again["kept"] == again["with_rejected"] == facts["train"]


def test_an_empty_side_is_told(tmp_path, notes: Notes) -> None:
    source = write(tmp_path / "chats.jsonl", [chat(1)])
    facts = run(tmp_path / "out", source)
    assert (facts["train"], facts["valid"], facts["test"]) == (1, 0, 0)
    assert sum("warning" in text for text in notes.notes) == 2
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == b""


@pytest.mark.parametrize(("given", "value"), [("1%", 0.01), (" 2.5 % ", 0.025), (0.5, 0.5), ("0.02", 0.02), (0, 0.0)])
def test_max_bad_takes_a_fraction_or_a_percentage(given: object, value: float) -> None:
    assert Config(max_bad=given).max_bad == pytest.approx(value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_bad": "many"},
        {"max_bad": "x%"},
        {"max_bad": "nan%"},
        {"max_bad": "101%"},
        {"max_bad": -1},
        {"min_turns": 0},
        {"max_chars": 0},
        {"unknown": 1},
        {"split": {"train": 0.5}},
        {"split": {"train": 0, "valid": 0.5, "test": 0.5}},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config(**options)


def test_shares_that_sum_to_one_but_for_rounding_are_taken() -> None:
    assert Split(train=0.7, valid=0.2, test=0.1).train == 0.7


def test_every_option_has_a_meaning() -> None:
    fields = [*Config.model_fields.values(), *Split.model_fields.values()]
    assert all(field.description for field in fields)
