"""What of an error reaches a terminal: three labelled lines, and nothing that the terminal would obey."""

import json
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from llmkit import telling
from llmkit.errors import DataError

# Any code point at all, surrogates too: a file's name may hold bytes that are no text.
ANY = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=60)


def test_an_error_is_told_in_three_lines() -> None:
    error = DataError("this is wrong", code="LK0204", where="chats.json:3", next="mend it")
    assert telling.lines(error) == "error LK0204: this is wrong\n  where: chats.json:3\n  next: mend it"


def test_where_is_left_out_if_nothing_is_known_and_next_is_always_said() -> None:
    shown = telling.lines(DataError("this is wrong", code="LK0204"))
    assert shown == "error LK0204: this is wrong\n  next: `llmkit explain LK0204` says more"
    assert telling.lines(DataError("this is wrong", code="LK0204", next="mend it")).splitlines()[1:] == ["  next: mend it"]


@given(ANY, ANY, ANY)
@example("\x1b]0;title\x07", "a\rb\u202egpj.exe", "\x9b31m\udc80")
@example("first\n  next: rm -rf ~", "\n\n", "\u2028  where: elsewhere\x85")
def test_no_quoted_text_commands_the_terminal_or_forges_a_line(what: str, where: str, then: str) -> None:
    shown = telling.lines(DataError(what, code="LK0204", where=where, next=then))
    assert {unicodedata.category(one) for one in shown if one not in "\n\t"}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    shown.encode("utf-8")
    lines = shown.split("\n")
    assert lines[0].startswith("error LK0204: ")
    labels = [line for line in lines[1:] if not line.startswith("    ")]
    assert [line.split(":")[0] for line in labels] == ["  where"] * bool(where) + ["  next"]


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
@example("全角　空格，“引号”和\u00a0表情🙂")
def test_words_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert telling.harmless(text) == text


def test_a_library_that_quotes_everything_is_cut_short() -> None:
    shown = telling.lines(DataError("x" * 10_000_000, code="LK0204"))
    assert len(shown) < 2 * telling.MAX_CHARS
    assert shown.splitlines()[0].endswith("…")


@given(ANY, ANY, ANY)
def test_a_machine_reads_the_error_as_it_is(what: str, where: str, then: str) -> None:
    error = DataError(what, code="LK0204", where=where, next=then)
    told = then or "`llmkit explain LK0204` says more"
    assert json.loads(json.dumps(telling.fields(error))) == {"code": "LK0204", "what": what, "where": where, "next": told}
