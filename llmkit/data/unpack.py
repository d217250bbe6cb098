"""Files of other kinds as JSON lines, in constant memory: arrays, tables, columnar files, saved folders; gzip and zstd.

Record n of the input is line n of the output. Knows which ending means what; each kind of file is read elsewhere
(`elements`, `tables`, `columnar`). What cannot be one line, a row of bytes say, becomes the line `null` and a reason.
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmkit.data import columnar, tables
from llmkit.data.elements import elements
from llmkit.data.reading import BYTE_ORDER_MARK, MAX_LINE_BYTES, UTF16_MARKS, Bad, check_unchanged, snapshot
from llmkit.errors import DataError

MAX_BAD = 100_000
_PLAIN = (".jsonl", ".ndjson")
_BLOCK_BYTES = 2**20
# A brace alone on its line opens an object that an indenting writer wrote.
_INDENTED = re.compile(rb"\{[ \t\r]*\n")


class Unpacked(NamedTuple):
    """`lines` were written; those in `bad`, by number from 1, are `null` and stand for records that could not be."""

    lines: int
    bad: Mapping[int, Bad]


class _DamagedError(Exception):
    """The compressed bytes end too early or make no sense."""


def is_known(path: Path) -> bool:
    """Whether a file's name, or what a folder holds, says that this is data."""
    return columnar.is_saved(path) if path.is_dir() else path.name.lower().endswith(ENDINGS)


def is_plain(path: Path) -> bool:
    """Whether a file holds one JSON value a line already.

    Raises:
        DataError: it cannot be read.
    """
    ending = path.suffix.lower()
    if ending != ".json" or path.is_dir():
        return ending in _PLAIN and not path.is_dir()
    try:
        with path.open("rb") as stream:
            return _shape(stream) == "lines"
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", code="LK0113", where=str(path)) from None


def to_lines(path: Path, out: Path) -> Unpacked:
    """Write every record of `path`, a file or a folder that `datasets` saved, as a line of `out`.

    Raises:
        DataError: a file is damaged or changes meanwhile, its syntax is broken, its ending unknown, or over `MAX_BAD`
            records are bad.
        OSError: `out` cannot be written.
    """
    parts = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    before = {part: snapshot(part) for part in parts}
    kind = path.suffix.lower()
    with out.open("wb") as stream:
        sink = _Sink(stream, path)
        if path.is_dir():
            sink.take(columnar.saved_rows(path))
        elif kind in _COLUMNAR:
            sink.take(_COLUMNAR[kind](path))
        else:
            _unpack_stream(path, sink)
    for part, seen in before.items():
        check_unchanged(part, seen)
    return Unpacked(sink.lines, sink.bad)


class _Sink:
    """Writes lines, counts them and keeps the reasons of the bad."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.lines = 0
        self.bad: dict[int, Bad] = {}
        self._stream, self._path = stream, path

    def take(self, records: Iterator[bytes | Bad]) -> None:
        """One line for each record."""
        for record in records:
            self.lines += 1
            if isinstance(record, Bad):
                self.bad[self.lines] = record
                self._stream.write(b"null\n")
                if len(self.bad) > MAX_BAD:
                    what = f"over {MAX_BAD} records cannot be read; the last: {record.reason}"
                    raise DataError(what, code="LK0205", where=f"{self._path}:{self.lines}")
            else:
                self._stream.write(record + b"\n")

    def copy(self, source: BinaryIO) -> None:
        """What is lines already; a line may be longer than memory."""
        last = b"\n"
        while block := source.read(_BLOCK_BYTES):
            self._stream.write(block)
            self.lines += block.count(b"\n")
            last = block[-1:]
        if last != b"\n":
            self._stream.write(b"\n")
            self.lines += 1


def _unpack_stream(path: Path, sink: _Sink) -> None:
    name = path.name.lower()
    packing = next((ending for ending in _PACKINGS if name.endswith(ending)), "")
    ending = Path(name.removesuffix(packing)).suffix
    if ending not in _STREAMED:
        what = f"cannot read {path.suffix or 'a file without ending'}"
        raise DataError(what, code="LK0201", where=str(path), next=f"give one of {', '.join(ENDINGS)}")
    try:
        with path.open("rb") as packed:
            stream: io.BufferedReader[Any] = packed
            if packing:
                stream = io.BufferedReader(_Blocks(_PACKINGS[packing](packed)), _BLOCK_BYTES)
            try:
                if stream.peek(2).startswith(UTF16_MARKS):
                    raise DataError("the file is UTF-16", code="LK0202", where=str(path), next="save it as UTF-8")
                _STREAMED[ending](stream, path, sink)
            except _DamagedError as error:
                where = f"{packed.tell()} of {path.stat().st_size} bytes"
                what = f"{error}: {sink.lines} records could be read, {where}"
                raise DataError(what, code="LK0203", where=str(path), next="download it again") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"cannot read the file: {error.strerror}", code="LK0113", where=str(path)) from None


def _json(stream: "io.BufferedReader[Any]", path: Path, sink: _Sink) -> None:
    shape = _shape(stream)
    if shape == "lines":
        sink.copy(stream)
    else:
        sink.take(map(_one_line, elements(stream, path, array=shape == "array")))


def _shape(stream: "io.BufferedReader[Any]") -> str:
    """By the first bytes: "array", "values" (objects that span lines) or "lines"."""
    head = stream.peek(2**12).removeprefix(BYTE_ORDER_MARK).lstrip()
    if head.startswith(b"["):
        return "array"
    return "values" if _INDENTED.match(head) else "lines"


def _one_line(element: bytes) -> bytes | Bad:
    if len(element) > MAX_LINE_BYTES:
        return Bad.of(f"longer than {MAX_LINE_BYTES} bytes", element)
    # A line feed between tokens is white space, and so is a tab; within a string both are errors, and one stays one.
    return element.replace(b"\n", b"\t")


def _table(stream: "io.BufferedReader[Any]", path: Path, sink: _Sink, *, delimiter: str) -> None:
    sink.take(tables.rows(stream, path, delimiter=delimiter))


class _Blocks(io.RawIOBase):
    """A stream of the bytes that an iterator yields."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _gzip_blocks(packed: BinaryIO) -> Iterator[bytes]:
    import gzip

    with gzip.GzipFile(fileobj=packed) as stream:
        try:
            while block := stream.read1(_BLOCK_BYTES):
                yield block
        except EOFError:
            raise _DamagedError("the gzip file ends too early") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _DamagedError(f"the gzip file is damaged ({error})") from None


def _zstd_blocks(packed: BinaryIO) -> Iterator[bytes]:
    import zstandard

    # The library's stream reader takes a file that ends too early for a whole one: only a frame's `eof` tells.
    frame = None
    # In small pieces: each may unpack to 32,768 times its size.
    while piece := packed.read(2**9):
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise _DamagedError(f"the zstd file is damaged ({error})") from None
            piece = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise _DamagedError("the zstd file ends too early")


_PACKINGS: Mapping[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": _gzip_blocks, ".zst": _zstd_blocks}
_STREAMED: Mapping[str, Callable[["io.BufferedReader[Any]", Path, _Sink], None]] = {
    ".jsonl": lambda stream, path, sink: sink.copy(stream),
    ".ndjson": lambda stream, path, sink: sink.copy(stream),
    ".json": _json,
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
}
_COLUMNAR: Mapping[str, Callable[[Path], Iterator[bytes | Bad]]] = {
    ".parquet": columnar.parquet_rows,
    ".arrow": columnar.arrow_rows,
}
ENDINGS = (*_STREAMED, *_COLUMNAR, *(ending + packing for ending in _STREAMED for packing in _PACKINGS))
