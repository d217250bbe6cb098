"""The demo dialogues: made-up YAML for the rules, the real package for the counts and the split."""

from importlib.util import find_spec
from pathlib import Path

import orjson
import pytest

from llmkit.artifact import Kind, foreign
from llmkit.data.chatterbot import read_corpus
from llmkit.data.record import read_records
from llmkit.errors import DataError
from llmkit.steps import clean


def _corpus(folder: Path, language: str = "english", name: str = "ai.yml", text: str = "") -> Path:
    (folder / language).mkdir(exist_ok=True)
    (folder / language / name).write_text(text, "utf-8")
    return folder


def _lines(raw: dict) -> list[str]:
    return [message["content"] for message in raw["messages"]]


def test_lines_alternate_and_an_unanswered_last_one_is_left_out_and_counted(tmp_path) -> None:
    text = "categories: [x]\nconversations:\n- [hi, ho]\n- [a, b, c]\n- [a, b, c, d]\n"
    records, counts = read_corpus(_corpus(tmp_path, text=text), ["en"])
    assert [_lines(raw) for raw in records] == [["hi", "ho"], ["a", "b"], ["a", "b", "c", "d"]]
    assert [message["role"] for message in records[2]["messages"]] == ["user", "assistant"] * 2
    assert counts == {"conversations": 3, "dialogues": 3, "alternatives": 0, "unanswered_lines": 1, "skipped": 0}


def test_scalars_keep_the_words_of_the_file(tmp_path) -> None:
    text = "conversations:\n- - Is it?\n  - Yes\n- - how many\n  - 22\n- - when\n  - 2001-01-01\n- - null\n  - ~\n"
    records, _ = read_corpus(_corpus(tmp_path, text=text), ["en"])
    assert [_lines(raw)[1] for raw in records] == ["Yes", "22", "2001-01-01", "~"]


def test_entries_that_are_no_conversation_are_skipped_and_counted(tmp_path) -> None:
    text = "conversations:\n- just text\n- [alone]\n- [a, {b: c}]\n- {a: b}\n- [ok, fine]\n"
    records, counts = read_corpus(_corpus(tmp_path, text=text), ["en"])
    assert [_lines(raw) for raw in records] == [["ok", "fine"]]
    assert counts["skipped"] == 4


def test_alternative_answers_become_exchanges_of_their_own(tmp_path) -> None:
    text = "conversations:\n- [what is it, this, that, those]\n"
    records, counts = read_corpus(_corpus(tmp_path, name="computers.yml", text=text), ["en"])
    assert [_lines(raw) for raw in records] == [["what is it", answer] for answer in ("this", "that", "those")]
    assert counts["alternatives"] == 2


@pytest.mark.parametrize(
    ("languages", "text", "message"),
    [
        (["xx"], "conversations: []", "no such language: xx"),
        ([], "conversations: []", "no such language"),
        (["zh"], "conversations: []", "no chatterbot-corpus here"),
        (["en"], "a: [", "cannot read this YAML"),
        (["en"], "- a", "no list named conversations"),
        (["en"], "conversations: x", "no list named conversations"),
    ],
)
def test_what_is_no_corpus_is_a_data_error(tmp_path, languages, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_corpus(_corpus(tmp_path, text=text), languages)


def _installed() -> Path:
    spec = find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        pytest.skip("chatterbot-corpus is not installed")
    return Path(spec.origin).parent / "data"


def test_the_real_dialogues_split_without_a_leak(tmp_path, brute_leaks) -> None:
    raw, counts = read_corpus(_installed(), ["zh", "en"])
    assert (counts["conversations"], counts["skipped"]) == (467 + 2026, 1)
    source = tmp_path / "chatterbot.jsonl"
    source.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in raw))
    out = tmp_path / "out"
    out.mkdir()
    facts = clean.run(clean.Config(min_turns=2), {"source.0": foreign(source, Kind.SOURCE)}, out)
    sides = {name: list(read_records(out / f"{name}.jsonl")) for name in ("train", "valid", "test")}
    held = sides["valid"] + sides["test"]
    assert facts["kept"] == sum(map(len, sides.values())) > 1500
    assert min(len(sides["valid"]), len(sides["test"])) >= 105
    assert len(held) == pytest.approx(0.2 * facts["kept"], rel=0.25)
    assert brute_leaks(sides["train"], held, 0.7) == []
