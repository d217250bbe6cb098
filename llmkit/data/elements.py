"""The elements of a JSON array of any size, one at a time, as the bytes that they are in the file.

Finds where each ends by its brackets and strings alone; whether it is JSON within is for its reader, so that one bad
element does not end a run. Knows bytes; nothing of records.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from llmkit.data.reading import BYTE_ORDER_MARK, MAX_LINE_BYTES
from llmkit.errors import DataError

_BLOCK_BYTES = 2**20
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_WORD = re.compile(rb'[^ \t\r\n,\[\]{}":]++')
# All up to the next bracket, or to a string that does not end in what is read so far.
_FLAT = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)


def elements(stream: BinaryIO, path: Path, *, array: bool = True) -> Iterator[bytes]:
    """The elements of one array, or (`array` false) values one after another, in time linear in the bytes of the file.

    Of an element over `MAX_LINE_BYTES`, that many bytes and one more come. `path` is for messages only.

    Raises:
        DataError: the syntax between elements is broken, or one does not end; says at which byte and line.
    """
    window = _Window(stream, path)
    if not array:
        while sign := window.peek():
            yield window.element(sign)
        return
    window.peek()
    window.take()  # the opening bracket
    sign = window.peek()
    while sign not in {b"]", b""}:
        yield window.element(sign)
        sign = window.peek()
        if sign == b",":
            window.take()
            sign = window.peek()
            if sign == b"]":
                window.fail("a value is missing after the last comma")
        elif sign not in {b"]", b""}:
            window.fail("a comma is missing between two elements")
    if not sign:
        window.fail("the array has no end: the closing bracket is missing", next="download or write the file again")
    window.take()
    if window.peek():
        window.fail("text after the end of the array", next="name the file .jsonl if each line is a value of its own")


class _Window:
    """What is read of a stream and not yet done with, and where in the file that is."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._bytes, self._at, self._ended = b"", 0, False
        self._byte, self._line = 0, 1  # of the window's first byte
        self._more()
        if self._bytes.startswith(BYTE_ORDER_MARK):
            self._at = len(BYTE_ORDER_MARK)

    def peek(self) -> bytes:
        """The next byte that is no space, b"" at the end."""
        while True:
            match = _SPACE.match(self._bytes, self._at)
            assert match
            self._at = match.end()
            if self._at < len(self._bytes) or not self._more():
                return self._bytes[self._at : self._at + 1]

    def take(self) -> None:
        """Go past the byte that `peek` showed."""
        self._at += 1

    def element(self, sign: bytes) -> bytes:
        """The value that begins here, with `sign`."""
        if sign in b"{[":
            return self._bracketed()
        pattern = _STRING if sign == b'"' else _WORD
        while True:
            match = pattern.match(self._bytes, self._at)
            # A word may go on where the window ends; a string ends where it ends.
            if match and (sign == b'"' or match.end() < len(self._bytes) or self._ended):
                self._at = match.end()
                return match[0]
            if (not match and sign != b'"') or self._ended or self._is_over(self._at):
                self.fail(f"no JSON value begins with {sign.decode('ascii', 'backslashreplace')}, or it does not end")
            self._more()

    def fail(self, what: str, *, next: str = "mend the file there") -> NoReturn:
        """Raise the DataError that says where this is."""
        line = self._line + self._bytes.count(b"\n", 0, self._at)
        raise DataError(f"{what}, at byte {self._byte + self._at}", code="LK0204", where=f"{self._path}:{line}", next=next)

    def _bracketed(self) -> bytes:
        """An object or array; `pieces` holds what is scanned of one that outgrows the window."""
        began = self._byte + self._at
        pieces: list[bytes] = []
        size = depth = 0
        place = self._at
        while True:
            match = _FLAT.match(self._bytes, place)
            assert match
            place = match.end()
            sign = self._bytes[place : place + 1]
            if sign not in {b"", b'"'}:
                place += 1
                depth += 1 if sign in b"{[" else -1
                if depth == 0:
                    pieces.append(self._bytes[self._at : place])
                    self._at = place
                    return b"".join(pieces)[: MAX_LINE_BYTES + 1]
                continue
            # All before is scanned for good; a string that does not end yet is scanned again once the window has doubled.
            if size <= MAX_LINE_BYTES:
                pieces.append(self._bytes[self._at : place])
            size += place - self._at
            self._at = place
            if self._is_over(place) or not self._more():
                what = f"the element that begins at byte {began} does not end"
                self.fail(what, next="look there for a quote or a bracket that is missing")
            place = self._at

    def _is_over(self, place: int) -> bool:
        return len(self._bytes) - place > MAX_LINE_BYTES

    def _more(self) -> bool:
        """Drop what is done with and read on, as much as is left at least; False at the end of the file."""
        rest = self._bytes[self._at :]
        block = self._stream.read(max(_BLOCK_BYTES, len(rest)))
        self._byte += self._at
        self._line += self._bytes.count(b"\n", 0, self._at)
        self._bytes, self._at = rest + block, 0
        self._ended = not block
        return bool(block)
