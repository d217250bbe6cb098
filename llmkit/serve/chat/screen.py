"""How answers reach a screen: nothing of a model's text moves the cursor; two answers side by side, row by row.

Knows characters and their widths; nothing of models.
"""

import re
from collections.abc import Callable, Iterator

from rich.cells import cell_len

# C0 but line feed and tab, DEL, C1, and what reverses the direction of text.
_MOVING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_HALF = re.compile(r"[\ud800-\udfff]")
NARROWEST = 90  # columns of a terminal that has room for two answers
_GAP = " │ "
_TAB = "    "

Write = Callable[[str], None]


def calm(text: str) -> str:
    """`text` without control characters but line feed and tab; half a surrogate pair becomes �."""
    return _HALF.sub("\ufffd", _MOVING.sub("", text))


def sound(text: str) -> str:
    """`text` as any encoder takes it: half a surrogate pair becomes �."""
    return _HALF.sub("\ufffd", text)


class Columns:
    """Two answers side by side, as both come.

    One row is on its way at a time and drawn over itself; it is done once both sides have filled theirs, so nothing above
    it is ever drawn again, however long the answers or small the screen.
    """

    def __init__(self, write: Write, *, width: int, names: tuple[str, str]) -> None:
        self._write = write
        self._width = (width - len(_GAP) - 1) // 2  # the last column of a terminal wraps on some
        self._sides = (_Lines(self._width), _Lines(self._width))
        self._row = 0
        self._draw([_fitting(calm(name), self._width) for name in names])
        self._write("\n" + "─" * self._width + "─┼─" + "─" * self._width + "\n")

    def add(self, index: int, text: str, *, last: bool = False) -> None:
        """More of a side's answer; after its `last` part the side stays blank and the other one goes on alone."""
        side = self._sides[index]
        side.add(calm(text))
        if last:
            side.end()
        going = [len(side.full) for side in self._sides if not side.ended]
        until = min(going) if going else max(len(side.full) for side in self._sides)
        while self._row < until:
            self._draw([side.row(self._row) for side in self._sides])
            self._write("\n")
            self._row += 1
        if going:
            self._draw([side.row(self._row) for side in self._sides])

    def _draw(self, cells: list[str]) -> None:
        left, right = cells
        self._write(f"\r\x1b[K{left}{' ' * (self._width - cell_len(left))}{_GAP}{right}")


class _Lines:
    """Text broken into lines of at most `width` cells as it comes; at spaces where there are any, else anywhere."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.full: list[str] = []
        self.ended = False
        self._rest = ""

    def add(self, text: str) -> None:
        self._rest += text.replace("\t", _TAB)
        *whole, self._rest = self._rest.split("\n")
        for line in whole:
            *broken, last = _broken(line, self._width)
            self.full += [*broken, last]
        *broken, self._rest = _broken(self._rest, self._width)
        self.full += broken

    def end(self) -> None:
        if self._rest:
            self.full.append(self._rest)
        self._rest, self.ended = "", True

    def row(self, number: int) -> str:
        if number < len(self.full):
            return self.full[number]
        return self._rest if number == len(self.full) else ""


def _broken(line: str, width: int) -> Iterator[str]:
    """The parts of one line, at least one; a space that a break falls on is dropped."""
    while cell_len(line) > width:
        end = _prefix(line, width)
        space = end if line[end] == " " else line.rfind(" ", 0, end)
        yield line[: space if space > 0 else end]
        line = line[space + 1 :] if space > 0 else line[end:]
    yield line


def _prefix(line: str, width: int) -> int:
    """How many characters of `line` fit, at least one."""
    used = 0
    for place, character in enumerate(line):
        used += cell_len(character)
        if used > width:
            return max(1, place)
    return len(line)


def _fitting(text: str, width: int) -> str:
    text = text.replace("\n", " ").replace("\t", " ")
    return text if cell_len(text) <= width else text[: max(1, _prefix(text, width - 1))] + "…"
