"""All texts of a record as one string, and back: one pass of a rule over the whole costs less than one over each text.

Knows records; nothing of rules.
"""

from llmkit.data.record import Message, Record

BETWEEN = "\0"  # no text of a record holds it


def joined(record: Record) -> str:
    """Every message's text and, last, the rejected answer if there is one, with `BETWEEN` between."""
    texts = [message["content"] for message in record.messages]
    if record.rejected is not None:
        texts.append(record.rejected)
    return BETWEEN.join(texts)


def spread(record: Record, text: str) -> Record:
    """The record whose texts, joined, are `text`; it must hold as many as `record` has."""
    texts = text.split(BETWEEN)
    rejected = record.rejected if record.rejected is None else texts.pop()
    messages = [Message(role=message["role"], content=content) for message, content in zip(record.messages, texts, strict=True)]
    return Record(messages, record.source, rejected, record.pair, record.score)
