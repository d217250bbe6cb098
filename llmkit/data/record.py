"""One dialogue in its canonical form and its JSON line. Knows nothing of where dialogues come from or what is done to them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import orjson
from xxhash import xxh3_64_hexdigest

from llmkit.errors import DataError

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    role: str
    content: str


class Record(NamedTuple):
    """A dialogue.

    `rejected` is the dispreferred alternative to the last assistant message, and `pair` says where that came from
    ("explicit", "edit", "rating", "shuffle", "generated"); `score` is what a person thought of the last answer, the more the
    better (thumbs: 1 up, 0 down). A NamedTuple, not a dataclass: a cleaning run makes hundreds of thousands a second.
    Treat `messages` as frozen too.
    """

    messages: list[Message]
    source: str = ""
    rejected: str | None = None
    pair: str = ""
    score: float | None = None

    @property
    def id(self) -> str:
        """16 hex digits that are equal for dialogues that say the same; hashed anew at each call.

        XXH3-64 of the JSON line {"messages": [{"role", "content"}, …]}, without spaces, its line feed included; a rejected
        answer follows as "rejected".
        """
        return self.named_json()[0]

    def to_json(self) -> bytes:
        """One UTF-8 JSON line without its line feed: id, source, messages and, if there are any, rejected, pair and score."""
        return self.named_json()[1]

    def named_json(self) -> tuple[str, bytes]:
        """The id and the line, at the cost of one."""
        messages = [{"role": message["role"], "content": message["content"]} for message in self.messages]
        line: dict[str, object] = {"messages": messages}
        if self.rejected is not None:
            line["rejected"] = self.rejected
        said = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        name = xxh3_64_hexdigest(said)
        written = b'{"id":"%b","source":%b,%b' % (name.encode(), orjson.dumps(self.source), said[1:-2])
        if self.pair:
            written += b',"pair":' + orjson.dumps(self.pair)
        if self.score is not None:
            written += b',"score":' + orjson.dumps(self.score)
        return name, written + b"}"

    @classmethod
    def from_json(cls, line: bytes | str) -> "Record":
        """The record `to_json` wrote.

        Raises:
            DataError: `line` is not a canonical record.
        """
        try:
            value = orjson.loads(line)
            messages = [Message(role=message["role"], content=message["content"]) for message in value["messages"]]
            extras = (value.get("rejected"), value.get("pair", ""), value.get("score"))
            record = cls(messages, value.get("source", ""), *extras)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"not a canonical record: {error}", code="LK0210", next="make the dataset with `llmkit clean`"
            ) from None
        texts = [record.source, record.pair, record.rejected or "", *(text for one in messages for text in one.values())]
        if not all(isinstance(text, str) for text in texts) or not isinstance(record.score, int | float | None):
            raise DataError(
                "not a canonical record: a text is not a string, or its score no number",
                code="LK0210",
                next="make the dataset with `llmkit clean`",
            )
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
                    raise DataError(error.what, code=error.code, where=f"{path}:{number}", next=error.next) from None
    except OSError as error:
        raise DataError(f"cannot read the dataset: {error.strerror}", code="LK0113", where=str(path)) from None
