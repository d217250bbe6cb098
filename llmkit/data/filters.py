"""Which dialogues are worth training on. Pure functions Record → Record or Rejection; knows nothing of files or duplicates."""

from collections.abc import Callable
from typing import NamedTuple

from llmkit.data.record import ROLES, Record


class Rejection(NamedTuple):
    """Why a record is dropped: `reason` is a short stable key to count by, `detail` is for the reader."""

    reason: str
    detail: str = ""


Filter = Callable[[Record], Record | Rejection]


def dialogue_filter(*, min_turns: int, max_chars: int) -> Filter:
    """A filter for whole, alternating dialogues.

    `min_turns` counts messages, the system message not among them; `max_chars` bounds each message, the system message
    and a rejected answer among them, in characters (code points). Reasons: `bad_roles`, `too_few_turns`,
    `empty_message`, `message_too_long`, `rejected_equals_chosen`.
    """

    def judge(record: Record) -> Record | Rejection:
        return (
            _roles(record)
            or _length(record, min_turns)
            or _texts(record, max_chars)
            or (None if record.rejected is None else _rejected(record, max_chars))
            or record
        )

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


def _length(record: Record, min_turns: int) -> Rejection | None:
    messages = record.messages
    turns = len(messages) - (1 if messages and messages[0]["role"] == "system" else 0)
    # A dialogue of nothing but a system message holds no answer, whatever the minimum is.
    if turns < max(1, min_turns):
        return Rejection("too_few_turns", f"{turns} of at least {min_turns} messages")
    return None


def _texts(record: Record, max_chars: int) -> Rejection | None:
    for number, message in enumerate(record.messages):
        text = message["content"]
        if len(text) > max_chars:
            return Rejection("message_too_long", f"message {number + 1} has {len(text)} characters of at most {max_chars}")
        if not text or text.isspace():
            return Rejection("empty_message", f"message {number + 1}")
    return None


def _rejected(record: Record, max_chars: int) -> Rejection | None:
    text = record.rejected or ""
    if not text.strip():
        return Rejection("empty_message", "the rejected answer")
    if len(text) > max_chars:
        return Rejection("message_too_long", f"the rejected answer has {len(text)} characters of at most {max_chars}")
    if text.strip() == record.messages[-1]["content"].strip():
        return Rejection("rejected_equals_chosen", "a pair of equal answers teaches nothing")
    return None
