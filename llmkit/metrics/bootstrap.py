"""How far scores would move with other samples: bootstrap intervals and paired tests. Knows tallies; nothing of text or rules.

Samples are drawn again with replacement (Efron & Tibshirani 1993; Koehn 2004 for corpus scores). All tallies of one call
are resampled with the same weights, so that scores of two models on the same samples stay paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.errors import UsageError
from llmkit.metrics.tally import Floats, Tally

RESAMPLES = 1000
LEVEL = 0.95
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_TOPS = {"points": 100.0, "share": 1.0}  # the most a score can be, by unit; the least is 0
_CHUNK = 1 << 21  # weights held at once: 16 MB


@dataclass(frozen=True)
class Paired:
    """How much worse the second of two tallies of the same samples is, in the metric's unit.

    `drop` above 0: the second is worse. `low`, `high`: its two-sided 95 % interval; `p_value`: two-sided, of no difference.
    """

    drop: float
    low: float
    high: float
    p_value: float


def intervals(tallies: Sequence[Tally], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """Percentile 95 % intervals of the tallies' scores, by name; a name stands once.

    One sample tells nothing of its kind's spread, and a score that is no number has no interval: no entry for either. A mean
    of samples that all score the same, as no refusal among 40, has the interval of `unseen`.

    Raises:
        UsageError: the tallies are not of equally many samples.
    """
    found = {}
    for tally, scores in zip(tallies, replicates(tallies, seed=seed, resamples=resamples), strict=True):
        if len(tally.counts) > 1 and np.isfinite(scores).all():
            # Pseudo-values of few samples spread beyond what a score can be.
            low, high = np.clip(np.quantile(scores, _ENDS), 0 if tally.unit in _TOPS else None, _TOPS.get(tally.unit))
            found[tally.name] = _unseen_of(tally) or (float(low), float(high))
    return found


def unseen(samples: int) -> float:
    """The largest share, with 97.5 % certainty, of what none of so many samples was; resampling them shows no spread at all."""
    return float(1 - ((1 - LEVEL) / 2) ** (1 / samples))


def _unseen_of(tally: Tally) -> tuple[float, float] | None:
    top, counts = _TOPS.get(tally.unit), tally.counts
    if top is None or counts.shape[1] != 2 or np.ptp(counts, axis=0).any() or counts[0, 1] != 1:
        return None
    value, share = tally.score, unseen(len(counts))
    return value * (1 - share), value * (1 - share) + share * top


def paired_many(pairs: Sequence[tuple[Tally, Tally]], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Paired]:
    """Test of each pair whether the second is worse than the first; two tallies of one metric, all over the same samples in
    the same order, with one set of weights.

    The p-value is two-sided: the share of resampled drops, centred on no difference, that are at least as large as the one
    seen, up or down (Riezler & Maxwell 2005). It is that of sacrebleu's randomization test; sacrebleu's own bootstrap
    centres absolute differences instead, which comes to about half.

    Raises:
        UsageError: the tallies of a pair are of different metrics, or not all of equally many samples.
    """
    return [
        _tested(a, b, resampled) for (a, b), resampled in zip(pairs, drops(pairs, seed=seed, resamples=resamples), strict=True)
    ]


def drops(pairs: Sequence[tuple[Tally, Tally]], *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """The drop from first to second in every resample, [pairs, resamples]; row by row on the same resamples.

    Raises:
        UsageError: as `paired_many`.
    """
    for a, b in pairs:
        if a.name != b.name:
            raise UsageError(f"{a.name} and {b.name} are two metrics, which no paired test compares", code="LK0710")
    # A tally that several pairs share, as all share a baseline's, is resampled once.
    distinct = {id(tally): tally for pair in pairs for tally in pair}
    scores = dict(zip(distinct, replicates(list(distinct.values()), seed=seed, resamples=resamples), strict=True))
    return np.array([_drop(a, scores[id(a)], scores[id(b)]) for a, b in pairs]).reshape(len(pairs), resamples)


def drop(a: Tally, b: Tally) -> float:
    """How much worse `b` scores than `a`; below 0 where it is better."""
    return float(_drop(a, np.asarray(a.score), np.asarray(b.score)))


def replicates(tallies: Sequence[Tally], *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Scores over resampled samples, [tallies, resamples].

    Raises:
        UsageError: the tallies are not of equally many samples.
    """
    samples = {len(tally.counts) for tally in tallies}
    if len(samples) > 1:
        raise UsageError(f"scores of {min(samples)} and of {max(samples)} samples cannot be resampled together", code="LK0710")
    scores = np.full((len(tallies), resamples), np.nan)
    if not any(samples):
        return scores
    # One matrix product for all tallies: the weights are read once.
    counts = np.concatenate([tally.counts for tally in tallies], axis=1)
    edges = np.cumsum([0, *(tally.counts.shape[1] for tally in tallies)])
    done = 0
    for weights in _weights(samples.pop(), resamples, seed):
        sums = weights @ counts
        for index, tally in enumerate(tallies):
            scores[index, done : done + len(weights)] = tally.value(sums[:, edges[index] : edges[index + 1]])
        done += len(weights)
    for index, tally in enumerate(tallies):
        if tally.point is not None:  # the mean of jackknife pseudo-values is not the score, but it spreads as the score does
            scores[index] += tally.point - float(tally.value(tally.counts.sum(axis=0)))
    return scores


def _weights(samples: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample holds each sample, [a chunk of resamples, samples]; rows sum to `samples`."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // samples)
    for start in range(0, resamples, rows):
        here = min(rows, resamples - start)
        # Drawing indices and counting them is ten times as fast as `Generator.multinomial`.
        drawn = generator.integers(samples, size=(here, samples))
        drawn += np.arange(here)[:, None] * samples
        yield np.bincount(drawn.ravel(), minlength=here * samples).reshape(here, samples).astype(np.float64)


def _drop(kind: Tally, a: Floats, b: Floats) -> Floats:
    return a - b if kind.higher_is_better else b - a


def _tested(a: Tally, b: Tally, resampled: Floats) -> Paired:
    seen = drop(a, b)
    if np.array_equal(a.counts, b.counts) and a.score == b.score:
        return Paired(drop=0.0, low=0.0, high=0.0, p_value=1.0)
    low, high = (float(one) for one in np.quantile(resampled, _ENDS))
    centred = np.abs(resampled - resampled.mean())
    larger = int(np.count_nonzero(centred >= abs(seen) - 1e-12))
    p_value = (larger + 1) / (len(resampled) + 1) if np.isfinite(seen) else float("nan")
    return Paired(drop=seen, low=low, high=high, p_value=p_value)
