"""Lays out which record is seen when, for a whole run at once. Knows lengths; nothing of models.

One list for all epochs makes resuming trivial: skip what was seen. Records of like length share a batch, so that little
of it is padding.
"""

import math
from collections.abc import Sequence
from random import Random

WINDOW_BATCHES = 16  # records are sorted by length within this many batches


def steps_for(records: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run: `max_steps`, or what `epochs` passes need; at least one."""
    return max_steps if max_steps is not None else max(1, math.ceil(records * epochs / batch_size))


def layout(lengths: Sequence[int], *, batch_size: int, steps: int, seed: int) -> list[int]:
    """Indices into `lengths`, `batch_size` for each of `steps` batches; each pass over the records has its own order."""
    random = Random(seed)  # noqa: S311 - an order, not a secret
    order: list[int] = []
    while len(order) < batch_size * steps:
        order += random.sample(range(len(lengths)), len(lengths))
    laid: list[int] = []
    # Never wider than a pass: a batch would fill with copies of one record, whose length is its own.
    window = min(WINDOW_BATCHES, max(1, len(lengths) // batch_size)) * batch_size
    for start in range(0, batch_size * steps, window):
        alike = sorted(order[start : min(start + window, batch_size * steps)], key=lengths.__getitem__)
        batches = [alike[begin : begin + batch_size] for begin in range(0, len(alike), batch_size)]
        random.shuffle(batches)
        laid += [index for batch in batches for index in batch]
    return laid
