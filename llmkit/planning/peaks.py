"""Peaks of memory, itemised. Knows sums; nothing of what they are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAPPED = "mapped file"


@dataclass(frozen=True)
class Peak:
    """What is held at once in one phase of a step: {part: bytes}."""

    phase: str
    parts: Mapping[str, int]

    @property
    def required(self) -> int:
        """What must fit: a mapped file counts as resident, but the system takes it back where memory is short."""
        return self.total - self.parts.get(MAPPED, 0)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])

    def to_json(self) -> dict[str, Any]:
        return {"phase": self.phase, "total": self.total, "required": self.required, "parts": dict(self.parts)}


def highest(peaks: Sequence[Peak]) -> Peak:
    return max(peaks, key=lambda one: one.total)
