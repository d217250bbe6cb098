"""A chat at a terminal and from a pipe, with speakers that need no model."""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.errors import DataError, UsageError
from llmkit.serve.chat import params
from llmkit.serve.chat.input import MOST_CHARACTERS
from llmkit.serve.chat.repl import chat
from llmkit.serve.chat.saving import save
from llmkit.serve.chat.screen import Columns, calm
from llmkit.serve.chat.talk import Talk
from llmkit.serve.speaker import Wish
from tests.serve.speaking import Fake, Terminal, said

PIPED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SCRIPT = """
from llmkit.serve.chat.repl import chat
from llmkit.serve.speaker import Wish
from tests.serve.speaking import Fake, asked, said
"""


def piped(
    monkeypatch: pytest.MonkeyPatch, text: str, speakers: Sequence[Fake], *, as_json: bool = False, system: str = "", wish: Wish
) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(sys, "stdout", out)
    chat(speakers, wish, as_json=as_json, system=system)
    return out.getvalue()


# From a pipe


def test_every_line_of_a_pipe_is_a_message_and_only_answers_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = piped(monkeypatch, "one\n\n/reset\n  \nends in \\\nlast", [Fake()], wish=Wish())
    assert found == "<one>\n</reset>\n<ends in \\>\n<last>\n"
    assert "fake: nothing, a context of 10000 tokens" in capsys.readouterr().err


def test_each_message_is_asked_with_all_that_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    speaker = Fake(lambda prompt: prompts.append(prompt) or str(len(prompts)))  # type: ignore[func-returns-value]
    piped(monkeypatch, "a\nb\n", [speaker], wish=Wish(), system="Be brief.")
    assert said(prompts[1]) == [["system", "Be brief."], ["user", "a"], ["assistant", "1"], ["user", "b"]]


def test_json_is_one_object_for_each_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    found = piped(monkeypatch, "你好\na\x85b\n", [Fake(), Fake(lambda _: "no\x9b")], as_json=True, wish=Wish(max_tokens=3))
    lines = [json.loads(line) for line in found.splitlines()]
    assert [line["message"] for line in lines] == ["你好", "a\x85b"]
    first, second = lines[0]["answers"]
    assert (first["name"], first["text"], first["finish"], first["tokens"]) == ("fake (1)", "<你好", "length", 3)
    assert (second["name"], second["text"], second["finish"]) == ("fake (2)", "no\x9b", "stop")
    assert "\x9b" not in found


def test_two_speakers_answer_one_after_another_under_their_names_and_remember_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = [Fake(lambda prompt, word=word: word * len(said(prompt)), name=word) for word in ("a", "b")]
    assert piped(monkeypatch, "x\ny\n", counting, wish=Wish()) == "[a]\na\n[b]\nb\n[a]\naaa\n[b]\nbbb\n"


def test_a_line_longer_than_a_message_may_be_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="at most"):
        piped(monkeypatch, "x" * (MOST_CHARACTERS + 1), [Fake()], wish=Wish())


def test_a_message_that_no_answer_fits_beside_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the context holds 50"):
        piped(monkeypatch, "x" * 100, [Fake(context=50)], wish=Wish())


@given(answer=TEXT)
@PIPED
def test_no_answer_moves_the_cursor(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    found = piped(monkeypatch, "x\n", [Fake(lambda _: f"\x1b[2J\x9b31m\u202e\ud800{answer}")], wish=Wish())
    found.encode()
    assert not {c for c in found if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066"}
    assert found.startswith("[2J31m\ufffd")


# What fits


@given(context=st.integers(40, 400), texts=st.lists(st.text("ab", max_size=30), max_size=12))
@settings(deadline=None)
def test_the_oldest_exchanges_fall_out_until_an_answer_has_room(context: int, texts: list[str]) -> None:
    talk = Talk(Fake(context=context), name="fake", system="s")
    kept: list[str] = []
    forgotten = 0
    for text in texts:
        try:
            asked = talk.ask(text, Wish())
        except DataError:
            assert len(Fake().render([{"role": "system", "content": "s"}, {"role": "user", "content": text}])) >= context
            continue
        seen = [content for role, content in said(asked.prompt) if role == "user"]
        assert seen == [*kept[asked.first :], text]
        assert asked.prompt.startswith('[["system", "s"]')
        assert asked.wish.max_tokens == context - len(asked.prompt) > 0
        assert len(asked.prompt) + context // 4 <= context or len(seen) == 1
        forgotten += talk.keep(asked, "ok")
        kept.append(text)
        assert forgotten == asked.first
    assert [one["content"] for dialogue in talk.dialogues() for one in dialogue if one["role"] == "user"] == kept


def test_that_something_fell_out_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = piped(monkeypatch, "aaaaaaaaaa\nb\nc\n", [Fake(context=110)], wish=Wish(max_tokens=20))
    assert found == "<aaaaaaaaaa>\n<b>\n<c>\n"
    assert "the model no longer sees the oldest 1 of the exchanges" in capsys.readouterr().err


# Settings and saving


@pytest.mark.parametrize(
    "bad", ["temperature=nan", "temperature=-1", "top_p=0", "seed=1.5", "max_tokens=0", "temprature=1", "seed", "seed=none="]
)
def test_a_setting_out_of_range_changes_nothing_and_says_what_it_takes(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        params.changed(Wish(), ["top_p=0.5", bad])
    assert caught.value.code == "LK0870"


@given(
    st.builds(
        Wish,
        max_tokens=st.none() | st.integers(1, 9999),
        temperature=st.floats(0, 2),
        top_p=st.floats(0.01, 1),
        seed=st.none() | st.integers(0, 2**32 - 1),
    )
)
def test_what_params_shows_it_reads(wish: Wish) -> None:
    shown = [line.split()[0] for line in params.shown(wish).splitlines()]
    assert params.changed(Wish(), shown) == wish


@given(dialogues=st.lists(st.lists(TEXT.filter(str.strip), min_size=2, max_size=6), min_size=1, max_size=4))
@PIPED
def test_what_is_saved_is_what_clean_reads(tmp_path_factory: pytest.TempPathFactory, dialogues: list[list[str]]) -> None:
    from llmkit.data import formats
    from llmkit.data.record import Record

    path = tmp_path_factory.mktemp("saved") / "chats.jsonl"
    written = []
    for number, texts in enumerate(dialogues):
        talk = Talk(Fake(), name="fake", system="sys" * (number % 2))
        for text in texts:
            talk.keep(talk.ask(text, Wish()), f"re: {text}")
        written += talk.dialogues()
        assert save(str(path), talk.dialogues()) == (number == 0)
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert [line["messages"] for line in lines] == written
    read = [formats.read(line, "saved") for line in lines]
    assert [list(record.messages) for record in read if isinstance(record, Record)] == written


def test_an_exchange_is_saved_under_the_system_prompt_it_was_asked_under() -> None:
    talk = Talk(Fake(), name="fake")
    for system, text in (("", "a"), ("", "b"), ("Be brief.", "c")):
        talk.system = system
        talk.keep(talk.ask(text, Wish()), text.upper())
    assert [[one["content"] for one in dialogue] for dialogue in talk.dialogues()] == [
        ["a", "A", "b", "B"],
        ["Be brief.", "c", "C"],
    ]


def test_a_place_that_cannot_be_written_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:  # which the talk goes on after
        save(str(tmp_path / "no such folder" / "x.jsonl"), [[{"role": "user", "content": "a"}]])
    assert caught.value.code == "LK0872"


def test_a_saved_dialogue_is_cleaned_to_a_dataset(tmp_path: Path) -> None:
    talk = Talk(Fake(), name="fake")
    for number in range(40):
        talk.forget()
        talk.keep(talk.ask(f"问题 {number * 7919}？", Wish()), f"答案是 {number * 104729}。")
        save(str(tmp_path / "chats.jsonl"), talk.dialogues())
    arguments = [
        "clean",
        "--input",
        str(tmp_path / "chats.jsonl"),
        "--output",
        str(tmp_path / "d"),
        "--min-turns",
        "2",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["facts"]["kept"] == 40


@pytest.mark.parametrize("there", ["notes\n", '{"messages": []}', '[1]\n{"text": 1}\n', "[" * 100_000 + "\n"])
def test_a_file_of_anything_else_stays_as_it_is(tmp_path: Path, there: str) -> None:
    (tmp_path / "f").write_text(there)
    with pytest.raises(DataError, match="stays as it is"):
        save(str(tmp_path / "f"), [[{"role": "user", "content": "x"}]])
    assert (tmp_path / "f").read_text() == there


# At a terminal


def test_a_person_talks_stops_an_answer_saves_and_leaves(tmp_path: Path) -> None:
    script = SCRIPT + "slow = Fake(lambda p: 'x' * 5000 if asked(p) == 'long' else f'{len(said(p))}:{asked(p)}\\x1b[2J')\n"
    script += "slow.pause = 0.002\nchat([slow], Wish(), system='S')\n"
    with Terminal(script) as terminal:
        terminal.until("> ")
        terminal.type("hello\n")
        shown = terminal.until("tokens/s")
        assert "2:hello[2J\n" in shown
        assert "\x1b[2J" not in shown
        terminal.type("\n")
        terminal.type("long\n")
        terminal.until("xxxxx")
        terminal.type("\x03")
        terminal.until("this question and the half answer are forgotten")
        terminal.type("one \\\ntwo\n")
        terminal.until("4:one \ntwo")
        terminal.type('"""\na\n\nb\n"""\n')
        terminal.until("6:a\n\nb")
        terminal.type("//system\n")
        terminal.until("8:/system")
        terminal.type(f"/save {tmp_path / 'c.jsonl'}\n")
        terminal.until("saved to")
        terminal.type("/reset\n/system -\nagain\n")
        terminal.until("1:again")
        terminal.type("/nonsense\n")
        terminal.until("there is no such command")
        terminal.type("/params temperature=9\n")
        terminal.until("a number from 0 to 2")
        terminal.type("refuse me\n")
        terminal.until("the template refuses it")
        terminal.type("half a line\x03")
        terminal.until("Ctrl-D or /quit leaves")
        terminal.type("\x04")
        code, rest = terminal.end()
    assert (code, "Traceback" in rest) == (0, False)
    (line,) = (tmp_path / "c.jsonl").read_text("utf-8").splitlines()
    questions = [one["content"] for one in json.loads(line)["messages"] if one["role"] == "user"]
    assert questions == ["hello", "one \ntwo", "a\n\nb", "/system"]


def test_on_a_wide_terminal_two_answers_come_side_by_side() -> None:
    script = SCRIPT + "chat([Fake(lambda p: '左边' * 40, name='a'), Fake(lambda p: 'right side ' * 3, name='b')], Wish())\n"
    with Terminal(script, width=100) as terminal:
        terminal.until("> ")
        terminal.type("go\n")
        shown = terminal.until("b: 33 tokens")
        assert "左边" * 12 + " │ right side right side right side" in shown.replace("\x1b[K", "")
        assert "\x1b[K" in shown
        terminal.type("/quit\n")
        assert terminal.end()[0] == 0


@given(left=TEXT, right=TEXT, width=st.integers(20, 80), cuts=st.lists(st.integers(0, 1), max_size=150))
@settings(deadline=None)
def test_columns_hold_both_texts_whole_however_they_come(left: str, right: str, width: int, cuts: list[int]) -> None:
    from rich.cells import cell_len

    drawn: list[str] = []
    columns = Columns(drawn.append, width=width, names=("l", "r"))
    head = len("".join(drawn))
    texts = [list(left), list(right)]
    for index in cuts:
        if texts[index]:
            columns.add(index, texts[index].pop(0))
    columns.add(0, "".join(texts[0]), last=True)
    columns.add(1, "".join(texts[1]), last=True)
    rows = [row.rpartition("\x1b[K")[2].split(" │ ", 1) for row in "".join(drawn)[head:].split("\n")[:-1]]
    assert all(cell_len(" │ ".join(row)) < max(width, 12) for row in rows if len(row) == 2)

    def letters(text: str) -> str:
        return "".join(calm(text).split())

    assert letters("".join(row[0] for row in rows)) == letters(left)
    assert letters("".join(row[1] for row in rows)) == letters(right)


def test_a_gguf_answers_at_a_terminal_and_outlives_ctrl_c(tiny_gguf: Callable[[str], Path]) -> None:
    arguments = [
        "llmkit",
        "chat",
        str(tiny_gguf("f16")),
        "--max-tokens",
        "200",
        "--context",
        "400",
        "--temperature",
        "1",
        "--seed",
        "1",
    ]
    script = f"import sys; sys.argv = {arguments!r}\nfrom llmkit.cli import main; main()\n"
    with Terminal(script) as terminal:
        terminal.until("> ", seconds=120)
        terminal.type("/params max_tokens=8\nhello\n")
        # A control key goes to whatever waits for input: the prompt, once it is there and readline listens.
        terminal.until("tokens/s", seconds=120)
        terminal.until("> ")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.until("Ctrl-D or /quit leaves")
        terminal.until("> ")
        terminal.type("again\n")
        terminal.until("tokens/s", seconds=120)
        terminal.until("> ")
        time.sleep(0.5)
        terminal.type("\x04")
        code, rest = terminal.end()
    assert (code, "Traceback" in rest) == (0, False)


def test_a_gguf_answers_a_pipe_as_json(tiny_gguf: Callable[[str], Path]) -> None:
    file = str(tiny_gguf("f16"))
    arguments = ["chat", file, "--versus", file, "--max-tokens", "6", "--json"]
    result = CliRunner().invoke(app, arguments, input="hello\n你好\n")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0, result.stderr
    assert [line["message"] for line in lines] == ["hello", "你好"]
    for line in lines:
        first, second = line["answers"]
        assert first["text"] == second["text"], "one model, greedy, twice"
        assert 0 < first["tokens"] <= 6


def test_bad_settings_and_what_cannot_talk_are_exit_2(tmp_path: Path) -> None:
    for arguments in (["--top-p", "0"], ["--temperature", "3"], [str(tmp_path)], ["--workspace", str(tmp_path)]):
        result = CliRunner().invoke(app, ["chat", *arguments], input="x\n")
        assert (result.exit_code, result.stdout) == (2, ""), arguments
