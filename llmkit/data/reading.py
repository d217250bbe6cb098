"""Lines of untrusted JSONL files, by byte range, and the JSON object in each. Knows bytes and JSON; nothing of dialogues.

A line that cannot be read has a reason, never an exception: one bad line must not end a run. Any partition of a file into
ranges yields all its lines, in order, each once.
"""

import io
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llmkit.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
RAW_BYTES = 8000  # of what cannot be read that are kept to look at
MAX_DEPTH = 999  # of arrays and objects in one another
MAX_BRACKETS = 2_000_000  # arrays and objects of one line; each costs some hundred bytes of memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# From 256 KB on, a block no longer fits the cache of the core and lines come at half the speed.
_BLOCK_BYTES = 2**17
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# An escaped NUL, not the text backslash-u-0-0-0-0 (whose backslash is itself escaped).
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(rb'"[^"]*+"')
_NEITHER = bytes(set(range(256)) - set(b'{}[]"'))  # brackets nor quotes
_STEPS = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_NO_JSON_NUMBER = re.compile(r"-?(?:NaN|Infinity)")


class Bad(NamedTuple):
    """Why a record could not be read, and how it begins."""

    reason: str
    raw: str

    @classmethod
    def of(cls, reason: str, raw: bytes) -> "Bad":
        """The first 2,000 characters of `raw`, of which at most `RAW_BYTES` are looked at."""
        return cls(reason, raw[:RAW_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")[:2000])


class Snapshot(NamedTuple):
    """What a file was when its reading began. `size` in bytes, `mtime_ns` in nanoseconds since the epoch."""

    size: int
    mtime_ns: int
    inode: int


def lines(path: Path, start: int, end: int, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The raw lines, each with its line feed, that start in the bytes [start, end) of a file; constant memory.

    A line that begins before `start` belongs to the range before. Of a line of more than `max_line_bytes`, its line feed
    among them, the first `max_line_bytes + 1` bytes come. A UTF-8 byte order mark does not.

    Raises:
        DataError: the file cannot be read, or is UTF-16.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            place, end = _first_start(stream, start, end, path)
            yield from _lines_from(stream, place, end, max_line_bytes)
    except OSError as error:
        raise _unreadable(path, error) from None


def count_lines(path: Path, start: int, end: int) -> int:
    """How many lines `lines` yields for the same range.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            blank = len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
            count = int(start == 0 and end > 0 and size > blank)
            # A line feed on a file's last byte starts no line.
            place, stop = max(start - 1, 0), min(end, size) - 1
            stream.seek(place)
            while place < stop and (block := stream.read(min(_BLOCK_BYTES, stop - place))):
                place += len(block)
                # Ten times faster than `block.count`, which looks at every byte by itself.
                count += len(block) - len(block.replace(b"\n", b""))
            return count
    except OSError as error:
        raise _unreadable(path, error) from None


def parse(line: bytes) -> dict[str, Any] | str:
    """The JSON object in `line`, or the reason there is none. RFC 8259: no NaN, no lone surrogate, and here no U+0000."""
    if reason := _too_much(line):
        return reason
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _why_not_json(line, error)
    if not isinstance(value, dict):
        return f"not a JSON object but {_kind(value)}; write one object a line"
    # One backslash is looked for ten times faster than six characters.
    if b"\\" in line and b"\\u0000" in line and _ESCAPED_NUL.search(line):
        return "holds a NUL character"
    return value


def snapshot(path: Path) -> Snapshot:
    """What `path` is now.

    Raises:
        DataError: it cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return Snapshot(status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(path: Path, before: Snapshot) -> None:
    """That `path` still is what it was: records are counted against one state of a file.

    Raises:
        DataError: it grew, shrank, was written to, was replaced or is gone.
    """
    try:
        now = snapshot(path)
    except DataError:
        what = "the file vanished while it was read"
    else:
        if now == before:
            return
        verb = "grew" if now.size > before.size else "shrank"
        how = f"it {verb} from {before.size} to {now.size} bytes" if now.size != before.size else "it was written anew"
        what = f"the file changed while it was read: {how}"
    raise DataError(what, code="LK0208", where=str(path), next="wait until it is written, or copy it, and run again")


def _first_start(stream: io.FileIO, start: int, end: int, path: Path) -> tuple[int, int]:
    """Where the first line of the range starts, and where the range ends: none starts inside of a byte order mark."""
    if start == 0:
        head = stream.read(len(BYTE_ORDER_MARK))
        if head.startswith(UTF16_MARKS):
            raise DataError("the file is UTF-16", code="LK0202", where=str(path), next="save it as UTF-8")
        if head == BYTE_ORDER_MARK and end > 0:
            return len(head), max(end, len(head) + 1)
        return 0, end
    place = stream.seek(start - 1)
    while place < end and (block := stream.read(_BLOCK_BYTES)):
        found = block.find(b"\n")
        if found >= 0:
            return place + found + 1, end
        place += len(block)
    return end, end


def _lines_from(stream: io.FileIO, place: int, end: int, limit: int) -> Iterator[bytes]:
    """Lines from `place`, where one starts, to the last that starts before `end`."""
    stream.seek(place)
    # No line within a block is over the limit; only one that spans blocks can be.
    size = min(_BLOCK_BYTES, limit)
    held = bytearray()
    while place < end and (block := stream.read(min(size, end - place))):
        place += len(block)
        cut = block.rfind(b"\n") + 1
        if not cut:
            held += block[: limit + 1 - len(held)]
            continue
        head = 0
        if held:
            head = block.find(b"\n") + 1
            yield bytes(held + block[:head])[: limit + 1]
        yield from io.BytesIO(block[head:cut])
        held = bytearray(block[cut:])
    if held:
        yield _finished(stream, held, limit)


def _finished(stream: io.FileIO, held: bytearray, limit: int) -> bytes:
    """The line that begins with `held`; what is over the limit is read past, never held."""
    while block := stream.read(_BLOCK_BYTES):
        cut = block.find(b"\n") + 1
        held += block[: cut or None][: limit + 1 - len(held)]
        if cut:
            break
    return bytes(held)


def _too_much(line: bytes) -> str:
    # What `lines` cut off may be JSON as far as it goes.
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES} bytes"
    if len(line) > 2 * MAX_DEPTH and (brackets := line.count(b"{") + line.count(b"[")) > MAX_DEPTH:
        if brackets > MAX_BRACKETS:
            return f"holds more than {MAX_BRACKETS} objects and arrays"
        if _depth(line) > MAX_DEPTH:
            return f"not JSON: nested more than {MAX_DEPTH} deep"
    return ""


def _depth(line: bytes) -> int:
    """How deep the arrays and objects of a line nest, counted without recursion."""
    quoted = line.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NEITHER)
    # Two quotes side by side leave all others inside or outside of a string, as they were.
    brackets = _STRING.sub(b"", quoted.replace(b'""', b"")).translate(None, b'"')
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as encoding:
        return f"not UTF-8: byte {line[encoding.start]:#04x} at position {encoding.start}"
    if b"\0" in line:
        return "holds a NUL character"
    where = f"at column {error.colno}"
    if "surrogate" in error.msg:
        return f"not JSON: half a character, a lone surrogate, {where}"
    if number := _NO_JSON_NUMBER.match(error.doc, error.pos):
        return f"not JSON: {number[0]} {where} is no JSON number; write null"
    return f"not JSON: {error.msg} {where}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "something else")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the file: {error.strerror}", code="LK0113", where=str(path))
