"""A user's own rule: what it may answer, and how its mistakes are told."""

from pathlib import Path

import pytest

from llmkit.data.custom import load
from llmkit.data.filters import Changed, Rejection, Rule
from llmkit.data.record import Record
from llmkit.errors import UsageError

RECORD = Record([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "f:7", "no", "edit", 1.0)


def rule(tmp_path: Path, body: str) -> Rule:
    path = tmp_path / "mine.py"
    path.write_text(f"def judge(record):\n    {body}\n", "utf-8")
    return load(path)


def test_a_record_that_comes_back_as_it_was_is_the_record(tmp_path: Path) -> None:
    assert rule(tmp_path, "return record")(RECORD) is RECORD


def test_a_changed_record_is_counted_and_the_one_given_stays(tmp_path: Path) -> None:
    change = rule(tmp_path, "record['messages'][0]['content'] = 'HI'; record['source'] = 'lie'; return record")
    verdict = change(RECORD)
    assert isinstance(verdict, Changed)
    assert verdict.found == {"custom:mine": 1}
    assert verdict.record == RECORD._replace(messages=[{"role": "user", "content": "HI"}, RECORD.messages[1]])
    assert RECORD.messages[0]["content"] == "hi"


def test_what_is_changed_but_not_returned_does_not_count(tmp_path: Path) -> None:
    assert rule(tmp_path, "record['messages'].clear(); return 'too dull'")(RECORD) == Rejection("custom:too dull")
    assert len(RECORD.messages) == 2
    assert rule(tmp_path, "return None")(RECORD) == Rejection("custom:mine")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1", "int"),
        ("return {}", "messages"),
        ("return {'messages': 'x'}", "messages"),
        ("return {'messages': [{'role': 'user'}]}", "role, content"),
        ("return {'messages': [{'role': 'user', 'content': 3}]}", "string"),
        ("return {**record, 'id': 1}", "'id'"),
        ("return {**record, 'score': 'good'}", "score"),
        ("return {**record, 'rejected': 3}", "string"),
        ("return {**record, 'rejected': 'a\\0b'}", "U+0000"),
        ("return {**record, 'rejected': '\\ud800'}", "Unicode"),
    ],
)
def test_a_wrong_answer_names_the_file_and_the_record(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        rule(tmp_path, body)(RECORD)
    assert words in raised.value.what
    assert "mine.py" in raised.value.where
    assert "f:7" in raised.value.where


@pytest.mark.parametrize("body", ["return 1 / 0", "import sys; sys.exit(0)", "return len(3)"])
def test_a_failure_names_the_file_the_line_and_the_record(tmp_path: Path, body: str) -> None:
    with pytest.raises(UsageError, match="f:7") as raised:
        rule(tmp_path, body)(RECORD)
    assert raised.value.where.endswith("mine.py:2")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("body", "line"), [("x = (", 1), ("\n\nraise ValueError('no')", 3), ("import no_such_module_at_all", 1)]
)
def test_a_file_that_does_not_run_is_an_error_with_its_line(tmp_path: Path, body: str, line: int) -> None:
    path = tmp_path / "mine.py"
    path.write_text(body, "utf-8")
    with pytest.raises(UsageError, match="cannot run") as raised:
        load(path)
    assert raised.value.where == f"{path}:{line}"


def test_a_file_without_judge_or_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("judge = 3\n", "utf-8")
    for name in ("empty.py", "none.py", "folder"):
        with pytest.raises(UsageError):
            load(tmp_path / name)
