"""A store of answers lives through kills, and opens whatever it finds."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.answers import Answer, Store, key, keys

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Any text, lone surrogates and line ends of every kind among it.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
answers = st.builds(Answer, texts, st.integers(0, 9), st.booleans(), finite, st.none() | finite, texts)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
batches = st.lists(st.dictionaries(texts, answers, max_size=3), max_size=5)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3)
ONE = Answer("你好", 2, stopped=True, seconds=0.5)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A free path for each example of a property."""
    return (tmp_path / str(number) / "answers.jsonl" for number in count())


def filled(path: Path, puts: Sequence[dict[str, Answer]]) -> Path:
    with Store(path) as store:
        for batch in puts:
            store.put(batch)
    return path


def held(path: Path, names: Sequence[str]) -> dict[str, Answer]:
    with Store(path) as store:
        found = {name: answer for name in names if (answer := store.get(name)) is not None}
        assert len(store) == len(found)
        return found


@MANY
@given(puts=batches)
def test_what_was_put_last_under_a_key_is_there_when_opened_again(fresh: Iterator[Path], puts: list[dict[str, Answer]]) -> None:
    expected = {name: answer for batch in puts for name, answer in batch.items()}
    assert held(filled(next(fresh), puts), list(expected)) == expected


@MANY
@given(notes=st.lists(st.tuples(texts, values)))
def test_a_note_is_what_was_noted_last(fresh: Iterator[Path], notes: list[tuple[str, Any]]) -> None:
    path = next(fresh)
    with Store(path) as store:
        for name, value in notes:
            store.note(name, value)
    with Store(path) as store:
        assert {name: store.noted(name) for name, _ in notes} == dict(notes)
        assert len(store) == 0


def test_a_kill_at_any_byte_leaves_a_prefix_of_what_was_put(tmp_path: Path) -> None:
    puts = [{"a": ONE, "\ud800": Answer("\n\r\u2028\ud83d", 1, stopped=False, seconds=0.0)}, {"a": Answer("", 0, True, 0.0)}]
    whole = filled(tmp_path / "whole.jsonl", puts).read_bytes()
    for size in range(len(whole) + 1):
        assert_prefix(tmp_path / "cut.jsonl", whole[:size], puts)


@MANY
@given(puts=batches, data=st.data())
def test_so_does_a_kill_in_any_store(fresh: Iterator[Path], puts: list[dict[str, Answer]], data: st.DataObject) -> None:
    path = filled(next(fresh), puts)
    whole = path.read_bytes()
    assert_prefix(path, whole[: data.draw(st.integers(0, len(whole)))], puts)


def assert_prefix(path: Path, content: bytes, puts: Sequence[dict[str, Answer]]) -> None:
    path.write_bytes(content)
    entries = [(name, answer) for batch in puts for name, answer in batch.items()]
    assert held(path, [name for name, _ in entries]) == dict(entries[: content.count(b"\n")])
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


@MANY
@given(puts=batches, size=st.integers(0, 10_000), later=answers)
def test_a_killed_store_takes_answers_again(
    fresh: Iterator[Path], puts: list[dict[str, Answer]], size: int, later: Answer
) -> None:
    path = filled(next(fresh), puts)
    path.write_bytes(path.read_bytes()[:size])
    filled(path, [{"later": later}])
    assert held(path, [*(name for batch in puts for name in batch), "later"])["later"] == later


def test_an_answer_is_on_disk_while_the_store_is_still_open(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Store(path) as store:
        store.put({"a": ONE})
        assert json.loads(path.read_text())["key"] == "a"


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"key": "a", "answer": {**asdict(ONE), "mood": "good"}, "when": 3}) + "\n")
    assert held(path, ["a"]) == {"a": ONE}


def test_what_is_no_json_is_not_noted(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.jsonl") as store, pytest.raises(TypeError):
        store.note("a", object())
    assert (tmp_path / "answers.jsonl").read_bytes() == b""


@MANY
@given(garbage=st.one_of(st.binary(max_size=60), values.map(lambda value: json.dumps(value).encode())))
def test_what_stands_before_garbage_is_kept(fresh: Iterator[Path], garbage: bytes) -> None:
    path = filled(next(fresh), [{"a": ONE}])
    with path.open("ab") as stream:
        stream.write(garbage + b"\n")
    assert held(path, ["a"]) == {"a": ONE}


@pytest.mark.parametrize(
    "line",
    [
        {"key": "b", "answer": []},
        {"key": "b", "answer": None},
        {"key": "b"},
        {"note": "b"},
        {"answer": asdict(ONE)},
        {"key": "b", "answer": {"text": "x"}},
    ],
)
def test_an_entry_with_something_missing_is_none(tmp_path: Path, line: dict[str, Any]) -> None:
    path = filled(tmp_path / "answers.jsonl", [{"a": ONE}])
    with path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    assert held(path, ["a", "b"]) == {"a": ONE}


def test_deeply_nested_garbage_is_garbage(tmp_path: Path) -> None:
    path = filled(tmp_path / "answers.jsonl", [{"a": ONE}])
    with path.open("ab") as stream:
        stream.write(b"[" * 100_000 + b"\n")
    assert held(path, ["a"]) == {"a": ONE}


@pytest.mark.parametrize("wrong", [{"text": 3}, {"tokens": "many"}, {"failure": None}, {"seconds": []}])
def test_an_answer_of_wrong_types_is_garbage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = filled(tmp_path / "answers.jsonl", [{"a": ONE}])
    with path.open("a") as stream:
        stream.write(json.dumps({"key": "b", "answer": {**asdict(ONE), **wrong}}) + "\n")
    assert held(path, ["a", "b"]) == {"a": ONE}


def test_what_stands_after_garbage_is_kept(tmp_path: Path) -> None:
    path = filled(tmp_path / "answers.jsonl", [{"a": ONE}])
    with path.open("ab") as stream:
        stream.write(b"garbage\n")
    later = filled(tmp_path / "later.jsonl", [{"b": ONE}]).read_bytes()
    path.write_bytes(path.read_bytes() + later)
    assert held(path, ["a", "b"]) == {"a": ONE, "b": ONE}


@MANY
@given(one=messages, other=messages)
def test_prompts_have_one_key_if_they_say_the_same(one: list[dict[str, str]], other: list[dict[str, str]]) -> None:
    assert (key(one) == key(other)) == (one == other)
    assert key(one) != key(one, turn=1)


@MANY
@given(conversations=st.lists(messages, max_size=6))
def test_every_question_has_a_key_of_its_own(conversations: list[list[dict[str, str]]]) -> None:
    found = keys(conversations + conversations)
    assert len(set(found)) == len(found)
    assert found[: len(conversations)] == keys(conversations)
