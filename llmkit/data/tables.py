"""Rows of CSV and TSV files as JSON lines. Knows text tables; what a column means is for others.

The first row names the columns. An empty cell is no key, and a row of empty cells no record. A row that cannot be read has
a reason, never an exception.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from llmkit.data.reading import BYTE_ORDER_MARK, RAW_BYTES, Bad
from llmkit.errors import DataError

MAX_ROW_BYTES = 16 * 2**20  # `csv` holds a cell at four bytes a character
# Columns whose cells may hold JSON.
NESTED = {"messages", "conversations", "turns", "history", "chosen", "rejected", "prompt"}


def rows(stream: BinaryIO, path: Path, *, delimiter: str) -> Iterator[bytes | Bad]:
    """Each row as the JSON of its object, or why it is none; a row of over `MAX_ROW_BYTES` is none. RFC 4180, UTF-8.

    Raises:
        DataError: the first row does not name columns, each by another name.
    """
    source = _Rows(stream)
    before = csv.field_size_limit(MAX_ROW_BYTES)  # theirs is 131,072 characters, less than a long dialogue
    try:
        cells = csv.reader(source, delimiter=delimiter, strict=True)
        header = _header(cells, path)
        while header:
            source.begin()
            try:
                row = next(cells, None)
                if row is None:
                    return
                line = _line(header, row)
            except csv.Error as error:
                yield Bad.of(f"not a row of the table: {error}", source.raw)
            except TypeError as error:  # what orjson raises
                yield Bad.of("not UTF-8" if "surrogate" in str(error) else f"not JSON: {error}", source.raw)
            else:
                if line:
                    yield line
    finally:
        csv.field_size_limit(before)


def _header(cells: Iterator[list[str]], path: Path) -> list[str]:
    """The column names; [] of an empty file."""
    try:
        header = next((row for row in cells if row), [])
        "".join(header).encode("utf-8")
    except csv.Error as error:
        raise DataError(f"the header is not a row of a table: {error}", code="LK0204", where=f"{path}:1") from None
    except UnicodeEncodeError:
        next_ = "save the table as UTF-8 (Excel: CSV UTF-8)"
        raise DataError("the header is not UTF-8", code="LK0202", where=f"{path}:1", next=next_) from None
    twice = [name for name in set(header) if name and header.count(name) > 1]
    if twice:
        raise DataError(f"two columns are named {min(twice)!r}", code="LK0204", where=f"{path}:1", next="rename one")
    return header


def _line(header: list[str], row: list[str]) -> bytes:
    """A row as JSON, b"" of one without text."""
    if len(row) > len(header):
        raise csv.Error(f"{len(row)} cells, but the header has {len(header)}")
    record = {key: _cell(key, text) for key, text in zip(header, row, strict=False) if key and text}
    return orjson.dumps(record) if record else b""


def _cell(key: str, text: str) -> object:
    if key in NESTED and text.lstrip()[:1] in ("[", "{"):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


class _Rows:
    """Physical lines for `csv`, as text in which a byte that is not UTF-8 is a lone surrogate. `raw`: how the row begins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._mark = stream, BYTE_ORDER_MARK
        self.begin()

    def begin(self) -> None:
        """A new row: forget the last."""
        self.raw, self._size = b"", 0

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        rest = line
        while len(rest) > MAX_ROW_BYTES and not rest.endswith(b"\n"):
            rest = self._stream.readline(MAX_ROW_BYTES + 1)
        line, self._mark = line.removeprefix(self._mark), b""
        self.raw += line[: RAW_BYTES - len(self.raw)]
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            raise csv.Error(f"longer than {MAX_ROW_BYTES} bytes; is a quote missing?")
        return line.decode("utf-8", "surrogateescape")
