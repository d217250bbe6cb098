"""Which dialogues are whole: roles, turns, lengths, tools. Pure functions; knows nothing of files or duplicates.

Also what every rule of cleaning is and answers: `Rule`, `Verdict`. The other rules are modules beside this one, and
`rules` puts them in order.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from llmkit.data.record import ROLES, Record

TOOL_ROLES = frozenset({"tool", "tool_call"})  # what a tool returned; an assistant's message that calls one
_CACHED_TURNS = 64


class Rejection(NamedTuple):
    """Why a record is dropped: `reason` is a short stable key to count by, `detail` is for the reader."""

    reason: str
    detail: str = ""


class Changed(NamedTuple):
    """A record that stays, and what was counted on the way (`{"email": 2}`); the record itself may be the one that came."""

    record: Record
    found: Mapping[str, int]


Verdict = Record | Rejection | Changed
Rule = Callable[[Record], Verdict]  # pure: never changes its record
Filter = Callable[[Record], Record | Rejection]
Turn = Literal["message", "exchange"]


def _whole_dialogues() -> dict[tuple[str, ...], int]:
    """The roles of every alternating dialogue of up to 64 messages, with or without a system message → its messages."""
    pairs = [("user", "assistant") * count for count in range(1, _CACHED_TURNS // 2 + 1)]
    return {(*system, *roles): len(roles) for roles in pairs for system in ((), ("system",))}


_WHOLE = _whole_dialogues()


def dialogue_filter(*, min_turns: int, max_chars: int, min_chars: int = 1, turn: Turn = "message") -> Filter:
    """A filter for whole, alternating dialogues.

    `min_turns` counts messages, the system message not among them, or exchanges (a question and its answer).
    `min_chars` and `max_chars` bound each message, the system message and a rejected answer among them, in characters
    (code points); the lower bound is held against what is left without white space at the ends, and an empty message
    passes no bound. Reasons: `bad_roles`, `too_few_turns`, `empty_message`, `message_too_short`, `message_too_long`,
    `rejected_equals_chosen`.
    """
    min_messages = max(2, min_turns * 2 if turn == "exchange" else min_turns)
    shortest = max(1, min_chars)
    strict = shortest > 1
    whole = _WHOLE

    def judge(record: Record) -> Record | Rejection:
        messages = record.messages
        if record.rejected is None and whole.get(tuple([message["role"] for message in messages]), 0) >= min_messages:
            # Most records pass: these lines do nothing but see that, and `_explain` finds out what is wrong with the others.
            for message in messages:
                text = message["content"]
                if len(text) > max_chars or not text or text.isspace() or (strict and len(text.strip()) < shortest):
                    break
            else:
                return record
        return _explain(record)

    def _explain(record: Record) -> Record | Rejection:
        return (
            _roles(record)
            or _length(record, min_turns, turn)
            or _texts(record, shortest, max_chars)
            or (None if record.rejected is None else _rejected(record, shortest, max_chars))
            or record
        )

    return judge


def tools(*, action: Literal["reject", "drop"]) -> Rule:
    """What to do with tool calls and what tools returned: reject the dialogue, or drop these messages and keep the talk.

    Whether what is left alternates is for `dialogue_filter` to judge. Reason, and what is counted: `tool_calls`.
    """

    def judge(record: Record) -> Verdict:
        roles = [message["role"] for message in record.messages]
        if TOOL_ROLES.isdisjoint(roles):
            return record
        if action == "reject":
            number = next(number for number, role in enumerate(roles, 1) if role in TOOL_ROLES)
            return Rejection("tool_calls", f"message {number} is a {roles[number - 1].replace('_', ' ')}")
        kept = [message for message in record.messages if message["role"] not in TOOL_ROLES]
        return Changed(record._replace(messages=kept), {"tool_calls": len(roles) - len(kept)})

    return judge


def _roles(record: Record) -> Rejection | None:
    """An optional system message, then user and assistant in turn, the assistant last."""
    messages = record.messages
    first = 1 if messages and messages[0]["role"] == "system" else 0
    expected = "user"
    for number in range(first, len(messages)):
        role = messages[number]["role"]
        if role != expected:
            known = "" if role in ROLES else f"; roles are {', '.join(ROLES)}"
            return Rejection("bad_roles", f"message {number + 1} is from {role[:40]!r}, not {expected!r}{known}")
        expected = "assistant" if expected == "user" else "user"
    if expected == "assistant":
        return Rejection("bad_roles", "the last message is the user's, with no answer")
    return None


def _length(record: Record, min_turns: int, turn: Turn) -> Rejection | None:
    messages = record.messages
    turns = len(messages) - (1 if messages and messages[0]["role"] == "system" else 0)
    if turn == "exchange":
        turns //= 2
    # A dialogue of nothing but a system message holds no answer, whatever the minimum is.
    if turns < max(1, min_turns):
        return Rejection("too_few_turns", f"{turns} of at least {min_turns} {turn}s")
    return None


def _texts(record: Record, min_chars: int, max_chars: int) -> Rejection | None:
    for number, message in enumerate(record.messages, 1):
        rejection = _size(message["content"], f"message {number}", min_chars, max_chars)
        if rejection is not None:
            return rejection
    return None


def _size(text: str, name: str, min_chars: int, max_chars: int) -> Rejection | None:
    if len(text) > max_chars:
        return Rejection("message_too_long", f"{name} has {len(text)} characters of at most {max_chars}")
    size = len(text.strip())
    if not size:
        return Rejection("empty_message", name)
    if size < min_chars:
        return Rejection("message_too_short", f"{name} has {size} characters of at least {min_chars}")
    return None


def _rejected(record: Record, min_chars: int, max_chars: int) -> Rejection | None:
    text = record.rejected or ""
    rejection = _size(text, "the rejected answer", min_chars, max_chars)
    if rejection is None and text.strip() == record.messages[-1]["content"].strip():
        return Rejection("rejected_equals_chosen", "a pair of equal answers teaches nothing")
    return rejection
