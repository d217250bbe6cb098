"""Pictures of measured variants as SVG: scores with their intervals, and one quantity against another. Knows places and
colours; chooses no winner. Follows https://www.w3.org/TR/SVG2/.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmkit.report import axes, html
from llmkit.report.html import Html, element

# In units of the view box, which a card shows nearly pixel by pixel.
_WIDTH = 460
_NAME = 118  # for the names beside the intervals
_ROW = 26
_RIGHT = 400  # where intervals end and their numbers begin
_LEFT, _TOP, _BOTTOM, _HEIGHT = 46, 14, 238, 280  # of the trade-off
_LETTER = 6.3  # of 12 px, about; Han characters are two
_LONGEST_NAME = 17  # cells

# In each element's own style: a picture copied out of the page keeps its look.
_TEXT = "fill:var(--ink);font-size:12px"
_QUIET = "fill:var(--quiet);font-size:12px"
_GRID = "stroke:var(--line);fill:none"
_COLOURS = {"good": "var(--kept)", "reference": "var(--held)", "lost": "var(--gone)", "other": "var(--before)"}


@dataclass(frozen=True)
class Mark:
    """A variant in a picture. `ends`: its 95 % interval; `kind`: good, reference, lost or other."""

    name: str
    value: float
    ends: tuple[float, float] | None
    kind: str


@dataclass(frozen=True)
class Spot:
    """A variant at `cost` (across) and `mark.value` (up). `front`: nothing is both cheaper and better."""

    mark: Mark
    cost: float
    front: bool


def intervals(marks: Sequence[Mark], *, label: str, digits: int = 1) -> Html:
    """A line a variant: a dot at its score, a stroke over its interval, the reference's interval as a band behind all."""
    bottom = _ROW * len(marks) + 6
    axis = axes.linear([end for mark in marks for end in (mark.value, *(mark.ends or ()))], _NAME, _RIGHT, parts=4)
    shapes = [_band(marks, axis, bottom)]
    for value, text in axis.ticks.items():
        x = f"{axis.place(value):.1f}"
        shapes.append(element("line", x1=x, x2=x, y1=0, y2=bottom, style=_GRID))
        shapes.append(element("text", text, x=x, y=bottom + 16, text_anchor="middle", style=_QUIET))
    for number, mark in enumerate(marks):
        shapes += _line(mark, axis, _ROW * number + _ROW / 2 + 2, digits)
    return _svg(shapes, bottom + 22, label)


def _band(marks: Sequence[Mark], axis: axes.Axis, bottom: float) -> Html:
    ends = next((mark.ends for mark in marks if mark.kind == "reference"), None)
    if not ends:
        return Html()
    left, right = map(axis.place, ends)
    return element("rect", x=f"{left:.1f}", y=0, width=f"{right - left:.1f}", height=bottom, style="fill:var(--track)")


def _line(mark: Mark, axis: axes.Axis, y: float, digits: int) -> Iterable[Html]:
    colour = _COLOURS[mark.kind]
    yield element("text", _short(mark.name), x=_NAME - 12, y=y + 4, text_anchor="end", style=_name_style(_TEXT))
    if mark.ends:
        left, right = (f"{axis.place(end):.1f}" for end in mark.ends)
        stroke = f"stroke:{colour};stroke-width:2.5;stroke-linecap:round"
        yield element("line", x1=left, x2=right, y1=y, y2=y, class_="interval", style=stroke)
    x = f"{axis.place(mark.value):.1f}"
    yield element("circle", cx=x, cy=y, r=4.5, class_=mark.kind, style=f"fill:{colour};stroke:var(--card);stroke-width:1")
    yield element("text", f"{mark.value:.{digits}f}", x=_WIDTH - 2, y=y + 4, text_anchor="end", style=_TEXT)


def trade_off(spots: Sequence[Spot], *, across: str, up: str, cheap_is_right: bool, label: str) -> Html:
    """Each variant at its cost and score, a stroke over its interval, and a line of steps through the Pareto front.

    `cheap_is_right`: a higher cost is better, as speed is.
    """
    x_axis = axes.linear([spot.cost for spot in spots], _LEFT, _WIDTH - 14, parts=5)
    values = [end for spot in spots for end in (spot.mark.value, *(spot.mark.ends or ()))]
    y_axis = axes.linear(values, _BOTTOM, _TOP, parts=4)

    def place(spot: Spot) -> tuple[float, float]:
        return x_axis.place(spot.cost), y_axis.place(spot.mark.value)

    front = sorted((spot for spot in spots if spot.front), key=lambda spot: -spot.cost if cheap_is_right else spot.cost)
    shapes = [*_frame(x_axis, y_axis, across=across, up=up), _steps([place(spot) for spot in front])]
    for spot in spots:
        shapes += _spot(spot, *place(spot), y_axis)
    shapes += _labels([(place(spot), spot) for spot in spots])
    return _svg(shapes, _HEIGHT, label)


def _frame(x_axis: axes.Axis, y_axis: axes.Axis, *, across: str, up: str) -> Iterable[Html]:
    for value, text in y_axis.ticks.items():
        y = f"{y_axis.place(value):.1f}"
        yield element("line", x1=_LEFT, x2=_WIDTH - 14, y1=y, y2=y, style=_GRID)
        yield element("text", text, x=_LEFT - 6, y=f"{y_axis.place(value) + 4:.1f}", text_anchor="end", style=_QUIET)
    for value, text in x_axis.ticks.items():
        at = x_axis.place(value)
        anchor = "end" if at > _WIDTH - 40 else "middle"
        yield element("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=_BOTTOM, y2=_BOTTOM + 4, style=_GRID)
        yield element("text", text, x=f"{min(at, _WIDTH - 4):.1f}", y=_BOTTOM + 18, text_anchor=anchor, style=_QUIET)
    yield element("text", up, x=_LEFT + 4, y=_TOP - 3, style=_QUIET)
    yield element("text", across, x=_WIDTH - 4, y=_HEIGHT - 4, text_anchor="end", style=_QUIET)


def _steps(front: Sequence[tuple[float, float]]) -> Html:
    if len(front) < 2:
        return Html()
    path = [front[0], *(corner for (_, y), (x, top) in pairwise(front) for corner in ((x, y), (x, top)))]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    return element("polyline", points=drawn, class_="front", style="fill:none;stroke:var(--kept);stroke-dasharray:4 3")


def _spot(spot: Spot, x: float, y: float, y_axis: axes.Axis) -> Iterable[Html]:
    mark, colour = spot.mark, _COLOURS[spot.mark.kind]
    if mark.ends:
        low, high = (f"{y_axis.place(end):.1f}" for end in mark.ends)
        style = f"stroke:{colour};stroke-width:1.2;opacity:.55"
        yield element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=low, y2=high, class_="interval", style=style)
    filled, hollow = f"fill:{colour};stroke:var(--card);stroke-width:1", f"fill:var(--card);stroke:{colour};stroke-width:2"
    kind, style = (f"{mark.kind} front", filled) if spot.front else (mark.kind, hollow)
    yield element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, class_=kind, style=style)


# Where a name may stand: from its dot's centre to the middle of its near side, and which side that is.
_NEAR = ((10, 0, "start"), (-10, 0, "end"), (0, -15, "middle"), (0, 15, "middle"))
_FAR = tuple((x, y, side) for y in (-26, 26, -40, 40, -54, 54, -68, 68) for x, side in ((14, "start"), (-14, "end")))


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def covered(self, other: "_Box") -> float:
        """The area that both share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def _labels(places: Sequence[tuple[tuple[float, float], Spot]]) -> Iterable[Html]:
    """Names beside their dots, each where it covers least of what is there; a thread leads to those that stand apart."""
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for (x, y), _ in places]
    for (x, y), spot in sorted(places, key=lambda one: one[0]):
        text = _short(spot.mark.name)
        choices = [(_text_box(text, x + dx, y + dy, side), dx, dy, side) for dx, dy, side in (*_NEAR, *_FAR)]
        box, dx, dy, side = min(choices, key=lambda one: _outside(one[0]) + sum(map(one[0].covered, taken)))
        taken.append(box)
        if (dx, dy, side) in _FAR:
            ends = {"x1": f"{x:.1f}", "y1": f"{y:.1f}", "x2": f"{x + dx * 0.8:.1f}", "y2": f"{y + dy:.1f}"}
            yield element("line", **ends, style="stroke:var(--quiet);stroke-width:.7")
        style = _name_style(_TEXT if spot.front else _QUIET)
        yield element("text", text, x=f"{x + dx:.1f}", y=f"{y + dy + 4:.1f}", text_anchor=side, style=style)


def _text_box(text: str, x: float, y: float, side: str) -> _Box:
    wide = _LETTER * _cells(text)
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[side]
    return _Box(left, y - 7, left + wide, y + 7)


def _outside(box: _Box) -> float:
    """A name beyond the picture is worse than one over another."""
    beyond = (_LEFT - box.left, box.right - _WIDTH, box.bottom - _BOTTOM, -box.top)
    return 1e4 * sum(max(0.0, far) for far in beyond)


def _short(name: str) -> str:
    from rich.cells import set_cell_size

    shown = html.line(name)
    return shown if _cells(shown) <= _LONGEST_NAME else set_cell_size(shown, _LONGEST_NAME - 1).rstrip() + "…"


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _name_style(style: str) -> str:
    # Isolated, so that a right-to-left name turns round nothing beside it; on a halo, as it may cross a stroke.
    return f"{style};unicode-bidi:isolate;paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round"


def _svg(shapes: Iterable[Html], height: float, label: str) -> Html:
    style = "display:block;width:100%;height:auto"
    return element("svg", *shapes, viewBox=f"0 0 {_WIDTH} {height:.0f}", role="img", aria_label=label, style=style)
