"""Whether measured models may pass: pass, fail or unknown, with a reason each. Knows tallies and numbers; no file, no recipe.

A drop fails when the outputs are not the baseline's, the drop exceeds its tolerance, and it is real: its one-sided lower
bound lies above 0. The bound holds for all drops of a gate at once, at 99 %, since a gate of many metrics and models looks
often: it comes from the largest standardised deviation in each resample (max-T: Westfall & Young 1993; Romano & Wolf 2005).
With a bound of 95 % for each metric alone, gates of three metrics failed 10–13 % of the pairs of equally good models at 500
samples (tests/benchmarks/bench_gate.py); so they fail 0–1.5 %.

A pass must prove something. Where the samples are too few to tell a drop as large as the tolerance from none, the verdict
is "unknown", with the number of samples it would take.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from llmkit.errors import UsageError
from llmkit.metrics import bootstrap
from llmkit.metrics.tally import Floats, Tally

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"
EXIT_CODES = {PASS: 0, FAIL: 1, UNKNOWN: 2}
CONFIDENCE = 0.99  # that not one of a gate's drops is noise
RESAMPLES = 2000  # twice as many as an interval takes: the quantile lies farther out
# Under so few samples a bootstrap takes its spread for too small: of equal models 2.2 % failed at 20, 4 % at 10.
LEAST_SAMPLES = 30
# Best where it equals the reference's, neither high nor low.
NEITHER_BETTER = frozenset({"length_ratio"})
_MOST_SAMPLES = 1e9
_OF_DIVERGENCE = ("kl", "perplexity")  # told beside the divergence they were measured with
_WHERE_KNOWN = ("min_retention", "max_size")
_ONE_SIDED_95 = 1.645  # standard errors within which a drop cannot be told from none


@dataclass(frozen=True)
class Limits:
    """What a gate demands; metrics by their names in the report.

    `max_drop`: the largest drop below the baseline, in the metric's unit; `floors`, `ceilings`: the least and the most that
    a number may be; `max_size` in bytes. That and `min_retention` hold where they are known: an endpoint's weights, for one,
    cannot be measured.

    Raises:
        UsageError: a limit is no number, a drop or a size below 0, or there are no limits.
    """

    max_drop: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    max_size: float | None = None
    min_tokens_per_second: float | None = None
    min_retention: float | None = None

    def __post_init__(self) -> None:
        if not self.max_drop and not self.bounds:
            raise UsageError(
                "the gate has no limits, so it would prove nothing", code="LK0706", next="set max_drop, floors or ceilings"
            )
        if wrong := [name for name, most in self.max_drop.items() if not (math.isfinite(most) and most >= 0)]:
            raise UsageError(
                f"max_drop of {wrong[0]} is {self.max_drop[wrong[0]]}", code="LK0706", next="give a number of 0 or more"
            )
        if vain := [bound for bound in self.bounds if not math.isfinite(bound.limit)]:
            raise UsageError(
                f"{vain[0].kind} of {vain[0].metric} is {vain[0].limit}", code="LK0706", next="give a finite number"
            )

    @property
    def bounds(self) -> list["Bound"]:
        """Every limit on a number by itself."""
        alone = {
            "max_size": ("size_bytes", self.max_size, True),
            "min_tokens_per_second": ("tokens_per_second", self.min_tokens_per_second, False),
            "min_retention": ("retention", self.min_retention, False),
        }
        return [
            *(Bound("floor", name, least, upper=False) for name, least in self.floors.items()),
            *(Bound("ceiling", name, most, upper=True) for name, most in self.ceilings.items()),
            *(Bound(kind, name, limit, upper=upper) for kind, (name, limit, upper) in alone.items() if limit is not None),
        ]


@dataclass(frozen=True)
class Bound:
    """A limit on one number: the most it may be if `upper`, else the least."""

    kind: str
    metric: str
    limit: float
    upper: bool


@dataclass(frozen=True)
class Entry:
    """One judged model.

    `row`: its entry in the report's `models`. `tallies`, `baseline`: its own and the baseline's, by metric, of the same
    samples in the same order. `identical`: its outputs are the baseline's, text for text.
    """

    model: str
    row: Mapping[str, Any]
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    baseline: Mapping[str, Tally] = field(default_factory=dict)
    identical: bool = False


@dataclass(frozen=True)
class Check:
    """One limit held against one model.

    `drop`, `error` (its standard error), `lower_bound` and `samples_needed` (for a verdict that is not "unknown") belong to
    `max_drop` alone.
    """

    model: str
    metric: str
    kind: str
    limit: float
    verdict: str
    why: str
    value: float | None = None
    baseline: float | None = None
    drop: float | None = None
    error: float | None = None
    lower_bound: float | None = None
    samples_needed: int | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks and what they come to: "fail" if one fails, else "unknown" if one is, else "pass"."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        # Of no checks at all nothing is known.
        return max((check.verdict for check in self.checks), key=[PASS, UNKNOWN, FAIL].index, default=UNKNOWN)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 unknown."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The report's "gate"; what is no number is None."""
        return {"verdict": self.verdict, "confidence": CONFIDENCE, "checks": [_plain(check) for check in self.checks]}


@dataclass(frozen=True)
class _Drop:
    """A drop that was measured: from `before` to `after` over `samples`, with its error and family-wise lower bound."""

    before: float
    after: float
    drop: float
    error: float
    lower_bound: float
    samples: int
    unit: str


def judge(limits: Limits, entries: Sequence[Entry], *, seed: int = 0) -> Verdict:
    """Hold every limit against every entry. What was not measured is unknown; what was measured as no number (NaN) fails.

    Raises:
        UsageError: there is no entry, or a drop is limited of a metric that has no better side.
    """
    if not entries:
        raise UsageError(
            "the gate has no model to judge", code="LK0706", next="evaluate a model beside the base and the gate's baseline"
        )
    for name in limits.max_drop:
        if name in NEITHER_BETTER:
            raise UsageError(
                f"{name} is neither better high nor low, so no drop is one", code="LK0706", next="give it a floor and a ceiling"
            )
    measured = _measure(limits, entries, seed)
    checks = []
    for entry in entries:
        checks += [_drop_check(entry, name, most, measured.get((entry.model, name))) for name, most in limits.max_drop.items()]
        checks += [_bound_check(entry, bound) for bound in limits.bounds if _applies(bound, entry)]
    return Verdict(tuple(checks))


def judged(rows: Iterable[str], *, baseline: str | None = None) -> list[str]:
    """The rows a gate looks at: all but the model before its fine-tune and the baseline."""
    return [name for name in rows if name not in ("base", baseline)]


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A number of a model's row in the report by its name, wherever it stands there.

    None where it was not measured; NaN where it was and the report, whose JSON has no NaN, says null, or a number beyond all
    floats.
    """
    compared = isinstance(row.get("divergence"), Mapping) and name in _OF_DIVERGENCE
    for place, measured in ((row.get("metrics"), True), (row, compared), (row.get("divergence"), True)):
        value = place.get(name, "") if isinstance(place, Mapping) else ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if abs(value) <= sys.float_info.max else math.nan
        if value is None and measured:
            return math.nan
    return None


def samples_needed(samples: int, error: float, size: float, *, errors: float = _ONE_SIDED_95) -> int | None:
    """How many samples make `size` as large as `errors` standard errors, given the `error` at `samples`.

    None: none do, or more than anyone has.
    """
    short = errors * error / size if size > 0 else math.inf
    wanted = samples * short * short  # not `**`, which raises where this becomes infinite
    return max(LEAST_SAMPLES, math.ceil(wanted)) if wanted < _MOST_SAMPLES else None


def _measure(limits: Limits, entries: Sequence[Entry], seed: int) -> dict[tuple[str, str], _Drop]:
    """Every drop that two finite scores allow, by model and metric."""
    pairs = {
        (entry.model, name): (entry.baseline[name], entry.tallies[name])
        for entry in entries
        for name in limits.max_drop
        if name in entry.tallies and name in entry.baseline
    }
    pairs = {key: (a, b) for key, (a, b) in pairs.items() if math.isfinite(a.score) and math.isfinite(b.score)}
    resampled = bootstrap.drops(list(pairs.values()), seed=seed, resamples=RESAMPLES)
    errors = resampled.std(axis=1)
    reach = _reach(resampled, errors)
    found = {}
    for (key, (a, b)), error in zip(pairs.items(), errors, strict=True):
        drop = bootstrap.drop(a, b)
        found[key] = _Drop(a.score, b.score, drop, float(error), float(drop - reach * error), len(a.counts), a.unit)
    return found


def _reach(resampled: Floats, errors: Floats) -> float:
    """How many standard errors the lower bounds lie below their drops, so that all hold together at `CONFIDENCE`."""
    moving = errors > 0
    if not moving.any():
        return 0.0
    deviations = (resampled[moving] - resampled[moving].mean(axis=1, keepdims=True)) / errors[moving, None]
    return float(np.quantile(deviations.max(axis=0), CONFIDENCE))


def _drop_check(entry: Entry, metric: str, most: float, found: _Drop | None) -> Check:
    if found is None:
        verdict, why = _unmeasured(entry, metric)
        return Check(entry.model, metric, "max_drop", most, verdict, why)
    verdict, why, needed = _drop_verdict(found, most, identical=entry.identical)
    return Check(
        entry.model,
        metric,
        "max_drop",
        most,
        verdict,
        why,
        value=found.after,
        baseline=found.before,
        drop=found.drop,
        error=found.error,
        lower_bound=found.lower_bound,
        samples_needed=needed,
    )


def _unmeasured(entry: Entry, metric: str) -> tuple[str, str]:
    for side, tallies, verdict in (("the model", entry.tallies, FAIL), ("the baseline", entry.baseline, UNKNOWN)):
        if metric in tallies and not math.isfinite(tallies[metric].score):
            return verdict, f"{metric} of {side} is no number"
    missing = "the model" if metric not in entry.tallies else "the baseline"
    known = ", ".join(sorted(set(entry.tallies) & set(entry.baseline))) or "nothing"
    return UNKNOWN, f"{metric} of {missing} was not measured; both have {known}"


def _drop_verdict(found: _Drop, most: float, *, identical: bool) -> tuple[str, str, int | None]:
    """Verdict, reason, and the samples it would take where the verdict is unknown."""
    if identical:
        return PASS, "the outputs are the baseline's, text for text", None
    moved = f"{_fell(found)}; {most:g} is allowed"
    if found.samples < LEAST_SAMPLES:
        return UNKNOWN, f"{moved}; {found.samples} samples prove nothing, it takes {LEAST_SAMPLES} at least", LEAST_SAMPLES
    if found.drop > most and found.lower_bound > 0:
        sure = f"by {found.lower_bound:.2f} at least, with {CONFIDENCE:.0%} confidence"
        return FAIL, f"{moved}, and it is no noise: {sure}", None
    if found.drop > most:
        reach = (found.drop - found.lower_bound) / found.error
        needed = samples_needed(found.samples, found.error, found.drop, errors=reach)
        return UNKNOWN, f"{moved}, but {found.samples} samples cannot tell it from noise{_takes(needed)}", needed
    blur = _ONE_SIDED_95 * found.error
    # Beyond doubt not that much worse: far enough above the tolerance even where the samples are few.
    if blur > most and found.drop + blur > most:
        needed = samples_needed(found.samples, found.error, most)
        return UNKNOWN, f"{moved}, but {found.samples} samples cannot tell such a drop from none{_takes(needed)}", needed
    return PASS, moved, None


def _fell(found: _Drop) -> str:
    # Neither "fell" nor "rose" before the number: of repetition, less is better.
    way = "worse" if found.drop > 0 else "better"
    change = f"{abs(found.drop):.2f} {way}" if found.drop else "no better, no worse"
    return f"{found.before:.2f} → {found.after:.2f}, {change}"


def _takes(needed: int | None) -> str:
    return f"; about {needed:,} would" if needed is not None else "; no number of samples anyone has would: allow some drop"


def _applies(bound: Bound, entry: Entry) -> bool:
    return bound.kind not in _WHERE_KNOWN or number(entry.row, bound.metric) is not None


def _bound_check(entry: Entry, bound: Bound) -> Check:
    value = number(entry.row, bound.metric)
    limit = f"{bound.limit:g}" if bound.kind != "max_size" else f"{bound.limit:,.0f}"
    rule = f"{'at most' if bound.upper else 'at least'} {limit}"
    if value is None:
        verdict, why = UNKNOWN, f"{bound.metric} was not measured; it has to be {rule}"
    elif math.isnan(value):
        verdict, why = FAIL, f"{bound.metric} is no number; it has to be {rule}"
    else:
        kept = value <= bound.limit if bound.upper else value >= bound.limit
        shown = f"{value:.4g}" if bound.kind != "max_size" else f"{value:,.0f}"
        verdict, why = PASS if kept else FAIL, f"{bound.metric} is {shown}; it has to be {rule}"
    return Check(entry.model, bound.metric, bound.kind, bound.limit, verdict, why, value=value)


def _plain(check: Check) -> dict[str, Any]:
    values = asdict(check)
    return {one.name: _finite(values[one.name]) for one in fields(Check)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
