"""One metric of one list of answers, as numbers that add up over samples. Knows arithmetic; no text and no resampling.

A bootstrap replicate is then a sum of rows and one call of `value`, a matrix product for thousands of replicates at once;
the text is never read a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """One metric of one list of answers: per-sample statistics that add up.

    `counts`: float64 [samples, k]. `value`: sums of counts [..., k] → scores [...], vectorised over the leading axes; it
    defines a score for all-zero sums as well. `unit`: "points" are 0–100. `point` is given by a metric that does not add up
    over samples, whose `counts` are then jackknife pseudo-values; `alone` where a sample's own score has a definition
    of its own, such as smoothed sentence BLEU.
    """

    name: str
    counts: Floats
    value: Callable[[Floats], Floats]
    higher_is_better: bool = True
    unit: str = "points"
    point: float | None = None
    alone: Floats | None = field(default=None, repr=False)

    @property
    def score(self) -> float:
        """The score of all samples together."""
        return float(self.value(self.counts.sum(axis=0))) if self.point is None else self.point

    @property
    def samples(self) -> Floats:
        """The score of each sample alone, [samples]."""
        return self.value(self.counts) if self.alone is None else self.alone


def ratio(sums: Floats) -> Floats:
    """Sums [..., 2] → first over second; 0 where the second is 0."""
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def percent(sums: Floats) -> Floats:
    """As `ratio`, times 100; never above 100 by a rounding error."""
    value = 100.0 * ratio(sums)
    # Summing n times the same share may round to a hair above n of them.
    return np.where((value > 100.0) & (value < 100.0 + 1e-9), 100.0, value)


def mean(name: str, values: Floats, *, higher_is_better: bool = True, unit: str = "points") -> Tally:
    """A metric that is the mean of one number per sample, [samples]; the numbers are already in its unit."""
    return Tally(name, np.column_stack([values, np.ones_like(values)]), ratio, higher_is_better, unit, alone=values)
