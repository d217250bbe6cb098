"""One dialogue in its canonical form and its JSON line. Knows nothing of where dialogues come from or what is done to them."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypedDict

import orjson

from llmkit.errors import DataError

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    role: str
    content: str


class Record(NamedTuple):
    """A dialogue. `rejected` is the dispreferred alternative to the last assistant message, if there is one.

    A NamedTuple, not a dataclass: a cleaning run makes hundreds of thousands a second. Treat `messages` as frozen too.
    """

    messages: list[Message]
    source: str = ""
    rejected: str | None = None

    @property
    def id(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical JSON of what is said; hashed anew at each call."""
        said = self.messages if self.rejected is None else [self.messages, self.rejected]
        return sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def to_json(self) -> bytes:
        """One UTF-8 JSON line without its line feed: id, messages, source and, if there is one, rejected."""
        fields = {"id": self.id, "messages": self.messages, "source": self.source}
        if self.rejected is not None:
            fields["rejected"] = self.rejected
        return orjson.dumps(fields)

    @classmethod
    def from_json(cls, line: bytes | str) -> "Record":
        """The record `to_json` wrote.

        Raises:
            DataError: `line` is not a canonical record.
        """
        try:
            value = orjson.loads(line)
            messages = [Message(role=message["role"], content=message["content"]) for message in value["messages"]]
            record = cls(messages, value.get("source", ""), value.get("rejected"))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a canonical record: {error}", next="make the dataset with `llmkit clean`") from None
        texts = [record.source, record.rejected or "", *(text for message in messages for text in message.values())]
        if not all(isinstance(text, str) for text in texts):
            raise DataError("not a canonical record: a text is not a string", next="make the dataset with `llmkit clean`")
        return record


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one record a line; returns how many."""
    count = 0
    with path.open("wb") as stream:
        for record in records:
            stream.write(record.to_json() + b"\n")
            count += 1
    return count


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file that `write_records` wrote.

    Raises:
        DataError: the file is missing or a line is not a canonical record; names the line.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield Record.from_json(line)
                except DataError as error:
                    raise DataError(error.what, where=f"{path}:{number}", next=error.next) from None
    except OSError as error:
        raise DataError(f"cannot read the dataset: {error.strerror}", where=str(path)) from None
