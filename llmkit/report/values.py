"""Plain values of a report that may be old, foreign or broken: what is missing or of another kind reads as nothing."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

Part = Mapping[str, Any]

_MOST = 1e100  # beyond it a number is drawn no more than an infinite one: sums of such would overflow


def number(value: object) -> float | None:
    """`value` as a float, not a number and infinite ones among them; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return inf


def finite(value: object) -> float | None:
    """`value` if it can be drawn: a number, neither infinite nor absurdly large."""
    found = number(value)
    if found is None or not abs(found) <= _MOST:
        return None
    return found if abs(found) >= 1 / _MOST else 0.0


def part(of: object, *keys: str) -> Part:
    """The mapping under nested keys, else an empty one."""
    for key in keys:
        of = of.get(key) if isinstance(of, Mapping) else None
    return of if isinstance(of, Mapping) else {}


def parts(of: Part, key: str) -> list[Part]:
    """The mappings in the list under `key`."""
    return [one for one in items(of, key) if isinstance(one, Mapping)]


def items(of: Part, key: str) -> Sequence[Any]:
    """The list under `key`, else an empty one."""
    found = of.get(key)
    return found if isinstance(found, Sequence) and not isinstance(found, str | bytes) else ()


def rows(report: Part) -> dict[str, Part]:
    """The models of a report by name."""
    return {str(name): model for name, model in part(report, "models").items() if isinstance(model, Mapping)}


def interval(model: Part, metric: str) -> tuple[float, float] | None:
    """The interval of a model's metric, low end first."""
    ends = [finite(end) for end in items(part(model, "intervals"), metric)]
    low, high = ends if len(ends) == 2 else (None, None)
    return None if low is None or high is None or low > high else (low, high)
