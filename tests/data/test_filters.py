"""The dialogue filter against a plain second reading of its rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.filters import Changed, Rejection, dialogue_filter, tools
from llmkit.data.record import Record


def record(*roles_and_texts: str, rejected: str | None = None) -> Record:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "c": "tool_call"}
    messages = [{"role": names[entry[0]], "content": entry[2:]} for entry in roles_and_texts]
    return Record(messages, "f:1", rejected)


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        (record("u:hi", "a:ho", "u:so", "a:no"), ""),
        (record("s:be kind", "u:hi", "a:ho", "u:so", "a:no"), ""),
        (record("u:hi", "a:ho"), "too_few_turns"),
        (record("s:x", "u:hi", "a:ho"), "too_few_turns"),
        (record(), "too_few_turns"),
        (record("s:x"), "too_few_turns"),
        (record("u:hi", "a:ho", "u:so"), "bad_roles"),
        (record("a:hi", "u:ho", "a:so"), "bad_roles"),
        (record("u:hi", "u:ho", "a:so"), "bad_roles"),
        (record("u:hi", "s:x", "a:so"), "bad_roles"),
        (record("s:hi", "s:x", "u:x", "a:so"), "bad_roles"),
        (record("u:hi", "t:3", "a:so"), "bad_roles"),
        (record("u:hi", "a:", "u:so", "a:no"), "empty_message"),
        (record("u:hi", "a: \t\n\u3000", "u:so", "a:no"), "empty_message"),
        (record("u:hi", "a:12345678901", "u:so", "a:no"), "message_too_long"),
        (record("u:hi", "a:字字字字字字字字字字", "u:so", "a:no"), ""),
        (record("u:hi", "a:ho", "u:so", "a:no", rejected="yes"), ""),
        (record("u:hi", "a:ho", "u:so", "a:no", rejected=" "), "empty_message"),
        (record("u:hi", "a:ho", "u:so", "a:no", rejected="12345678901"), "message_too_long"),
        (record("u:hi", "a:ho", "u:so", "a:no", rejected="no "), "rejected_equals_chosen"),
    ],
)
def test_each_rule_has_its_reason(dialogue: Record, reason: str) -> None:
    verdict = dialogue_filter(min_turns=3, max_chars=10)(dialogue)
    assert verdict is dialogue if not reason else isinstance(verdict, Rejection) and verdict.reason == reason


ENTRIES = st.lists(st.tuples(st.sampled_from("suat"), st.sampled_from(["", " ", "a", "abc", "abcd"])), max_size=6)


@given(ENTRIES, st.integers(1, 5), st.integers(1, 4))
def test_a_record_passes_if_and_only_if_it_obeys_every_rule(entries, min_turns: int, max_chars: int) -> None:
    dialogue = record(*(f"{role}:{text}" for role, text in entries))
    roles = "".join(role for role, _ in entries).removeprefix("s")
    obeys = (
        len(roles) >= max(min_turns, 1)
        and roles == "ua" * (len(roles) // 2)
        and all(text.strip() and len(text) <= max_chars for _, text in entries)
    )
    verdict = dialogue_filter(min_turns=min_turns, max_chars=max_chars)(dialogue)
    assert (verdict is dialogue) == obeys


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        (record("u:好的呀", "a:没问题"), ""),
        (record("u:好的呀", "a: 没 \n"), "message_too_short"),
        (record("u:好的呀", "a:  "), "empty_message"),
        (record("u:好的呀", "a:没问题", rejected="不"), "message_too_short"),
        (record("s:x", "u:好的呀", "a:没问题"), "message_too_short"),
    ],
)
def test_a_message_has_its_least_characters_without_white_space_around(dialogue: Record, reason: str) -> None:
    verdict = dialogue_filter(min_turns=2, max_chars=10, min_chars=3)(dialogue)
    assert verdict is dialogue if not reason else isinstance(verdict, Rejection) and verdict.reason == reason


@given(st.integers(0, 80), st.integers(1, 80), st.booleans(), st.sampled_from(["message", "exchange"]))
def test_a_turn_is_a_message_or_an_exchange(exchanges: int, least: int, system: bool, turn: str) -> None:
    dialogue = record(*["s:x"] * system, *["u:hi", "a:ho"] * exchanges)
    verdict = dialogue_filter(min_turns=least, max_chars=10, turn=turn)(dialogue)
    turns = exchanges if turn == "exchange" else 2 * exchanges
    if turns >= least:
        assert verdict is dialogue
    else:
        assert verdict == Rejection("too_few_turns", f"{turns} of at least {least} {turn}s")


TALK = record("u:几点了", "c:", "t:12:00", "a:十二点")


def test_tool_calls_are_rejected_or_dropped() -> None:
    plain = record("u:hi", "a:ho")
    for action in ("reject", "drop"):
        assert tools(action=action)(plain) is plain
    assert tools(action="reject")(TALK) == Rejection("tool_calls", "message 2 is a tool call")
    assert tools(action="drop")(TALK) == Changed(record("u:几点了", "a:十二点"), {"tool_calls": 2})
    assert len(TALK.messages) == 4


@given(ENTRIES)
def test_without_tools_only_talk_is_left_and_a_second_pass_finds_nothing(entries) -> None:
    dialogue = record(*(f"{role}:{text}" for role, text in entries))
    verdict = tools(action="drop")(dialogue)
    left = verdict.record if isinstance(verdict, Changed) else verdict
    assert left.messages == [message for message in dialogue.messages if message["role"] != "tool"]
    assert tools(action="drop")(left) is left
