"""Axes of a picture: values to places, and round numbers to stand beside them. Knows no shape and no metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10


def tick(value: float, apart: float) -> str:
    """`value` with as many digits as tell it from its neighbours, `apart` away."""
    if abs(value) < apart / 2:
        return "0"
    size = floor(log10(abs(value)) + 1e-9)
    digits = max(1, size - floor(log10(apart) + 1e-9) + 1)
    if -3 <= size < 6:
        return f"{value:,.{max(0, digits - size - 1)}f}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on a line from `start` to `end`. `ticks`: value → text."""

    low: float
    high: float
    start: float
    end: float
    ticks: Mapping[float, str]
    by_powers: bool = False

    def place(self, value: float) -> float:
        low, high, at = (log10(one) if self.by_powers else one for one in (self.low, self.high, value))
        # Clamped, as rounding may put what stands on the edge a hair beyond it.
        return self.start + (self.end - self.start) * min(max((at - low) / (high - low), 0.0), 1.0)


def linear(values: Sequence[float], start: float, end: float, *, parts: int) -> Axis:
    """An axis from the round number below all finite `values` to the one above them, in about `parts` parts."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all one value
        room = abs(high) / 10 or 1.0
        low, high = low - room, high + room
    apart = round_step(high - low, parts=parts)
    first, last = floor(low / apart + 1e-9), ceil(high / apart - 1e-9)
    ticks = [apart * n for n in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], start, end, {at: tick(at, apart) for at in ticks})


def powers(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis between the powers of ten around `low` > 0 and `high`."""
    first, last = floor(log10(low)), ceil(log10(high))
    ticks = {10.0**n: f"1e{n}" for n in range(first, last + 1, ceil((last - first) / 5))}
    return Axis(10.0**first, 10.0**last, start, end, ticks, by_powers=True)


def round_step(span: float, *, parts: int) -> float:
    """1, 2 or 5 times a power of ten that divides `span` into about `parts`."""
    power = 10.0 ** floor(log10(span / parts))
    return next(times * power for times in (1, 2, 5, 10, 20) if times * power * parts >= span * 0.9)
