"""What an evaluation asks."""

import json
from pathlib import Path

import pytest

from llmkit.errors import DataError
from llmkit.evaluation import questions


def write(path: Path, *dialogues: list[tuple[str, str]], source: str = "chats.jsonl:3") -> Path:
    lines = [
        {"id": f"{index:016x}", "messages": [{"role": role, "content": text} for role, text in one], "source": source}
        for index, one in enumerate(dialogues)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


ASKED = [("system", "Be brief."), ("user", "法国的首都是哪里？"), ("assistant", "巴黎。")]


def test_the_last_answer_is_taken_off_and_the_rest_is_asked(tmp_path: Path) -> None:
    (found,) = questions.read(write(tmp_path / "test.jsonl", ASKED), None)
    assert found.prompt == [{"role": role, "content": text} for role, text in ASKED[:-1]]
    assert (found.reference, found.language, found.source) == ("巴黎。", "zh", "chats.jsonl")
    assert [message["content"] for message in found.dialogue] == [text for _, text in ASKED]


def test_dialogues_that_end_on_no_answer_are_not_asked_and_do_not_count(tmp_path: Path) -> None:
    open_ended, empty = [("user", "Hello?")], [("user", "Hello?"), ("assistant", "  ")]
    path = write(tmp_path / "test.jsonl", open_ended, empty, ASKED, [("user", "Hi"), ("assistant", "Hello.")], ASKED)
    assert [one.language for one in questions.read(path, 2)] == ["zh", "en"]


def test_nothing_to_ask_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the test split is empty"):
        questions.read(write(tmp_path / "test.jsonl", [("user", "Hello?")]), None)


def test_the_digest_names_prompts_and_references(tmp_path: Path) -> None:
    one = questions.read(write(tmp_path / "a.jsonl", ASKED), None)
    same = questions.read(write(tmp_path / "b.jsonl", ASKED, source="other.jsonl:1"), None)
    other = questions.read(write(tmp_path / "c.jsonl", [*ASKED[:-1], ("assistant", "里昂。")]), None)
    assert questions.digest(one) == questions.digest(same) != questions.digest(other)
