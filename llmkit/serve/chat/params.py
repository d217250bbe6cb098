"""The settings of a chat: their spelling, their ranges, and how they are shown. Knows a Wish; nothing of terminals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmkit.errors import UsageError
from llmkit.serve.speaker import Wish

_NONE = "none"


@dataclass(frozen=True)
class _Setting:
    """`read` raises ValueError for what is no such number; `optional`: may be none."""

    read: Callable[[str], Any]
    low: float
    high: float
    takes: str
    meaning: str
    optional: bool = False


_SETTINGS: Mapping[str, _Setting] = {
    "max_tokens": _Setting(int, 1, 1_000_000, "a whole number from 1, or none", "the longest answer", optional=True),
    "temperature": _Setting(float, 0, 2, "a number from 0 to 2", "0 always takes the likeliest token"),
    "top_p": _Setting(float, 1e-6, 1, "a number above 0, at most 1", "the share of likelihood that is drawn from"),
    "seed": _Setting(int, 0, 2**32 - 1, "a whole number from 0, or none", "none: another answer each time", optional=True),
}


def changed(wish: Wish, assignments: Sequence[str]) -> Wish:
    """`wish` with `name=value` applied, each checked.

    Raises:
        UsageError: no such setting, or a value out of its range; nothing is changed then.
    """
    values = {}
    for one in assignments:
        name, equals, text = one.partition("=")
        if not equals or name not in _SETTINGS:
            raise UsageError("this sets nothing", code="LK0870", where=one, next=f"NAME=VALUE, with {_known()}")
        values[name] = _value(name, text)
    return replace(wish, **values)


def shown(wish: Wish) -> str:
    """One line a setting: its value as `changed` reads it, and its meaning."""
    lines = []
    for name, setting in _SETTINGS.items():
        value = getattr(wish, name)
        told = f"{name}={_NONE if value is None else value}"
        lines.append(f"  {told:<20} {setting.meaning}")
    return "\n".join(lines)


def _value(name: str, text: str) -> Any:
    setting = _SETTINGS[name]
    if setting.optional and text == _NONE:
        return None
    try:
        value = setting.read(text)
    except ValueError:
        value = None
    # Written so that NaN, which is in no order with anything, is out of range.
    if value is None or not setting.low <= value <= setting.high:
        raise UsageError(f"{name} is {setting.takes}", code="LK0870", where=f"{name}={text[:40]}")
    return value


def _known() -> str:
    return ", ".join(_SETTINGS)
