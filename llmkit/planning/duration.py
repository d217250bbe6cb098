"""How long a step will take: what was measured here before, else arithmetic over a measured rate. Knows seconds and FLOPs.

A range, not a number: processors are shared, and a guess is a guess.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

_SIDE, _TRIES = 768, 6  # of the matrix product that a processor's rate is measured with: a few hundredths of a second
GPU_RATE = 60e12  # FLOP/s that training reaches on a data-centre GPU; a guess that is told as one
_READ = 1.0e9  # bytes/s that weights come from a disk and are converted
_ENCODE = 4.0e7  # weights/s that are encoded as GGUF, by one processor
_LOAD = 5.0  # seconds a fresh process spends on imports
_SPREAD = {"measured here": (0.8, 1.4), "computed": (0.5, 2.5), "computed for a GPU": (0.3, 3.0)}


@dataclass(frozen=True)
class Time:
    """Seconds, from a low to a high guess; `how`: what they rest on."""

    low: float
    high: float
    how: str

    @classmethod
    def about(cls, seconds: float, how: str) -> "Time":
        low, high = _SPREAD[how]
        return cls(seconds * low, seconds * high, how)


@cache
def processor_rate() -> float:
    """FLOP/s of a matrix product in float32 on all processors, the best of a few short tries."""
    ones = np.ones((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        _ = ones @ ones
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / max(best, 1e-9)


def before(facts: Mapping[str, Any] | None, *, tokens: int = 0) -> Time | None:
    """What the same step took here the last time; of a fine-tune by its tokens a second."""
    facts = facts or {}
    rate, wall = _seconds(facts.get("tokens_per_second")), _seconds(facts.get("wall_seconds"))
    if tokens and rate:
        return Time.about(tokens / rate + max(0.0, wall - _seconds(facts.get("seconds"))), "measured here")
    return Time.about(wall, "measured here") if wall else None


def compute(flops: float, *, gpu: bool, efficiency: float = 1.0, weights: float = 0.0, extra: float = 0.0) -> Time:
    """By arithmetic: `flops` at a share of the rate, `weights` bytes read once, and `extra` seconds."""
    rate = GPU_RATE if gpu else processor_rate() * efficiency
    return Time.about(_LOAD + flops / rate + weights / _READ + extra, "computed for a GPU" if gpu else "computed")


def encoding(numbers: float, *, processors: int) -> float:
    return numbers / (_ENCODE * max(1, processors))


def _seconds(value: object) -> float:
    """A manifest's number; 0 for what is none."""
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if sane and isinstance(value, int | float) else 0.0
