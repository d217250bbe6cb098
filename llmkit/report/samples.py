"""Shows what training sees of a text: its learnt characters coloured, or between brackets. Knows characters; no tokens.

Data may hold anything, so control characters and marks that turn a line around are spelled out: a record cannot move a
terminal's cursor or hide what it says.
"""

import re
from collections.abc import Sequence

OPEN, CLOSE = "⟦", "⟧"
_LEARNT, _SPECIAL, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]")

Spans = Sequence[tuple[int, int]]


def runs(offsets: Spans, learnt: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the learnt characters begin and end: `offsets` and `learnt`, one for each token, joined where tokens touch."""
    found: list[tuple[int, int]] = []
    before = False
    for (start, end), kept in zip(offsets, learnt, strict=True):
        if kept and before:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif kept:
            found.append((start, end))
        before = kept
    return found


def render(text: str, learnt: Spans, special: Spans, *, color: bool) -> str:
    """`text` with its `learnt` runs green and its `special` tokens dim, or the runs between `OPEN` and `CLOSE`."""
    parts, position = [], 0
    for start, stop in learnt:
        parts.append(_stretch(text, position, start, special, base=_PLAIN, color=color))
        inside = _stretch(text, start, stop, special, base=_LEARNT, color=color)
        parts.append(f"{_LEARNT}{inside}{_PLAIN}" if color else f"{OPEN}{inside}{CLOSE}")
        position = stop
    parts.append(_stretch(text, position, len(text), special, base=_PLAIN, color=color))
    return "".join(parts)


def _stretch(text: str, start: int, stop: int, special: Spans, *, base: str, color: bool) -> str:
    if not color:
        return _visible(text[start:stop])
    parts, position = [], start
    for begin, end in special:
        if start <= begin < stop:
            parts += [_visible(text[position:begin]), _SPECIAL, _visible(text[begin : min(end, stop)]), base]
            position = min(end, stop)
    return "".join([*parts, _visible(text[position:stop])])


def _visible(text: str) -> str:
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
