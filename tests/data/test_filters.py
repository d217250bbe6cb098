"""The dialogue filter against a plain second reading of its rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.filters import Rejection, dialogue_filter
from llmkit.data.record import Record


def record(*roles_and_texts: str, rejected: str | None = None) -> Record:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
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
