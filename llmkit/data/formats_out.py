"""Dialogue formats out: records that passed the dialogue filter → raw objects that other trainers read.

The conventions are LLaMA-Factory's (data/README.md there) for "sharegpt" and "alpaca", TRL's for "messages". `formats.read`
reads each back as the same record. Knows no files.
"""

from collections.abc import Callable, Mapping

from llmkit.data.record import Message, Record

Raw = dict[str, object]

_FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def _to_messages(record: Record, thumbs: bool = True) -> Raw:
    """{"messages"}, or for a pair {"prompt", "chosen", "rejected"}: lists of messages all."""
    if record.rejected is None:
        return {"messages": record.messages, **_labels(record, thumbs)}
    rejected = Message(role="assistant", content=record.rejected)
    answers = {"chosen": record.messages[-1:], "rejected": [rejected]}
    return {"prompt": record.messages[:-1], **answers, **_labels(record, thumbs)}


def _to_sharegpt(record: Record, thumbs: bool = True) -> Raw:
    """{"conversations", "system"}, and for a pair "chosen" and "rejected", each one message, that the list then ends before."""
    system, talk = _system_apart(record)
    lines = [_line(message["role"], message["content"]) for message in talk]
    if record.rejected is None:
        return {"conversations": lines, "system": system, **_labels(record, thumbs)}
    answers = {"chosen": lines[-1], "rejected": _line("assistant", record.rejected)}
    return {"conversations": lines[:-1], "system": system, **answers, **_labels(record, thumbs)}


def _to_alpaca(record: Record, thumbs: bool = True) -> Raw:
    """{"instruction", "input", "output", "history", "system"}, or for a pair "chosen" and "rejected" in place of "output"."""
    system, talk = _system_apart(record)
    *earlier, asked, answer = (message["content"] for message in talk)
    answers = {"output": answer} if record.rejected is None else {"chosen": answer, "rejected": record.rejected}
    history = [[earlier[start], earlier[start + 1]] for start in range(0, len(earlier), 2)]
    return {"instruction": asked, "input": "", **answers, "history": history, "system": system, **_labels(record, thumbs)}


# `thumbs`: scores of 0 and 1 are thumbs, not the lowest of many stars.
TO: Mapping[str, Callable[..., Raw]] = {
    "messages": _to_messages,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}


def _labels(record: Record, thumbs: bool) -> Raw:
    """What the shape itself does not tell: a pair's origin unless it is the usual one, and the score or thumb."""
    labels: Raw = {}
    if record.pair != ("" if record.rejected is None else "explicit"):
        labels["pair"] = record.pair
    if thumbs and record.score in (0, 1):
        labels["kto_tag"] = record.score == 1
    elif record.score is not None:
        labels["score"] = record.score
    return labels


def _system_apart(record: Record) -> tuple[str, list[Message]]:
    messages = record.messages
    return (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else ("", messages)


def _line(role: str, text: str) -> dict[str, str]:
    return {"from": _FROM[role], "value": text}
