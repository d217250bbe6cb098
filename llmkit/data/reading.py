"""Lines of untrusted JSONL files as JSON objects. Knows bytes and JSON; nothing of dialogues.

A line that cannot be read is an entry with a reason, never an exception: one bad line must not end a run.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from llmkit.errors import DataError

ENDINGS = (".jsonl", ".ndjson", ".json")
MAX_LINE_BYTES = 64 * 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# An escaped NUL, not the text backslash-u-0-0-0-0 (whose backslash is itself escaped).
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Entry(NamedTuple):
    """One line that is not blank. `raw` is cut at `MAX_LINE_BYTES`; `value` is the object, or the reason it is none."""

    line: int
    raw: bytes
    value: dict[str, Any] | str


def entries(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Entry]:
    """Every line of a line-delimited JSON file that is not blank, numbered from 1, in constant memory.

    A line of more than `max_line_bytes`, its line feed among them, is read past.

    Raises:
        DataError: the file's ending is not one of `ENDINGS`, or the file cannot be read.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(
            f"cannot read {path.suffix or 'a file without ending'}: one JSON object a line is expected",
            where=str(path),
            next=f"convert it to JSON lines and name it {' or '.join(ENDINGS)}",
        )
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(_lines(stream, max_line_bytes), 1):
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if len(line) > max_line_bytes:
                    yield Entry(number, line, f"the line is longer than {max_line_bytes} bytes")
                elif line.strip():
                    yield Entry(number, line, parse(line))
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=str(path)) from None


def parse(line: bytes) -> dict[str, Any] | str:
    """The JSON object in `line`, or the reason there is none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _why_not_json(line, error)
    if not isinstance(value, dict):
        return f"not a JSON object but {_kind(value)}; write one object a line"
    if b"\\u0000" in line and _ESCAPED_NUL.search(line):
        return "holds a NUL character"
    return value


def _lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Lines; of one longer than `limit`, its first `limit + 1` bytes. The rest is read past, never held."""
    while line := stream.readline(limit + 1):
        yield line
        rest = line
        while len(rest) > limit and not rest.endswith(b"\n"):
            rest = stream.readline(limit + 1)


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as encoding:
        return f"not UTF-8: byte {line[encoding.start]:#04x} at position {encoding.start}"
    if b"\0" in line:
        return "holds a NUL character"
    return f"not JSON: {error.msg} at column {error.colno}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "something else")
