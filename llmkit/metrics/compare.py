"""Models of two or more reports, compared on the same prompts: `llmkit compare`. Knows reports and tallies; prints nothing.

Both sides' answers are scored anew, by one version of every metric.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llmkit.errors import DataError, UsageError
from llmkit.metrics import bootstrap, gate, reports
from llmkit.metrics.reports import Report, Side
from llmkit.metrics.tally import Floats, Tally

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, Tally]]

FORMAT = 1
MOST_CHANGED = 10  # samples shown
# What is not a mean over samples is set side by side, without a test.
NUMBERS = ("perplexity", "kl", "retention", "size_bytes", "tokens_per_second", "peak_memory_bytes")
_RANKED_BY = "rougeL"
_TIE = 1e-9


@dataclass(frozen=True)
class Change:
    """One metric on both sides, in its unit.

    `difference` is after − before with its two-sided 95 % interval and paired-bootstrap p-value (not corrected for the
    number of metrics). `wins`: samples on which the second side is the better one; None where a sample has no score of its
    own, or where neither high nor low is better: `higher_is_better` is None then.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    wins: int | None
    losses: int | None
    ties: int | None
    unit: str
    higher_is_better: bool | None


@dataclass(frozen=True)
class Changed:
    """One sample whose score moved; scores by the metric the samples are ranked by."""

    id: str
    prompt: tuple[tuple[str, str], ...]
    reference: str
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Comparison:
    """One model against one baseline.

    `same`: how many answers are equal, text for text. `numbers`: name → both sides' values. `changed`: the samples that
    moved most by `ranked_by`, the largest move first. `notes`: what was not compared, and why.
    """

    baseline: str
    model: str
    samples: int
    same: int
    metrics: Mapping[str, Change]
    numbers: Mapping[str, tuple[float | None, float | None]]
    ranked_by: str
    changed: tuple[Changed, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """All comparisons of one call, and what the gate says, if there is one."""

    comparisons: tuple[Comparison, ...]
    verdict: gate.Verdict | None = None

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code if self.verdict else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is no number is None."""
        found = [_plain(asdict(one)) for one in self.comparisons]
        return {"format": FORMAT, "comparisons": found, "gate": self.verdict.to_json() if self.verdict else None}


@dataclass(frozen=True)
class _Scored:
    """One pair of sides, its answers in the baseline's order, and the tallies of both."""

    a: Side
    b: Side
    keys: tuple[reports.Key, ...]
    before: Mapping[str, Tally]
    after: Mapping[str, Tally]

    @property
    def texts(self) -> list[tuple[str, str]]:
        here, there = self.a.report.by_key, self.b.report.by_key
        return [(here[key].answers[self.a.row], there[key].answers[self.b.row]) for key in self.keys]


@dataclass
class _Scorer:
    """Scores a side once, however many sides it is compared with."""

    score: Score
    _done: dict[tuple[int, str], Mapping[str, Tally]] = field(default_factory=dict)

    def __call__(self, side: Side, keys: Sequence[reports.Key]) -> Mapping[str, Tally]:
        name = (id(side.report), side.row)
        if name not in self._done:
            samples = [side.report.by_key[key] for key in keys]
            self._done[name] = self.score([one.answers[side.row] for one in samples], [one.reference for one in samples])
        return self._done[name]


def compare(
    names: Sequence[str], *, max_drop: Mapping[str, float] | None = None, score: Score | None = None, seed: int = 0
) -> Compared:
    """Compare every report after the first with the first; each is `FOLDER` or `FOLDER:ROW`.

    Without a row, the rows of one name are compared; where the two share none, the models they measured variants against.
    `max_drop` makes it a gate. `score` gives both sides' tallies; None: `llmkit.metrics.text`.

    Raises:
        UsageError: fewer than two names, or a metric in `max_drop` that nothing measures.
        DataError: a report that cannot be read, a row it does not have, or two that cannot be compared: why, each reason.
    """
    if len(names) < 2:
        raise UsageError("a comparison takes two reports", code="LK0707", next="llmkit compare BASELINE REPORT")
    found = [reports.locate(name) for name in names]
    read = {path: reports.read(path) for path in dict.fromkeys(path for path, _ in found)}
    (first, row), *others = found
    pairs = [pair for path, other in others for pair in _pairs(read[first], row, read[path], other)]
    for report in read.values():
        _check_comparable(read[first], report)
    scorer = _Scorer(score or _text_tallies)
    keys = tuple(read[first].by_key)
    scored = [_Scored(a, b, keys, scorer(a, keys), scorer(b, keys)) for a, b in dict.fromkeys(pairs)]
    verdict = _judge(scored, max_drop, seed) if max_drop else None
    return Compared(tuple(_compared(one, seed) for one in scored), verdict)


def _text_tallies(hypotheses: Sequence[str], references: Sequence[str]) -> Mapping[str, Tally]:
    from llmkit.metrics import text

    return text.score(hypotheses, references).tallies


def _pairs(a: Report, row: str | None, b: Report, other: str | None) -> list[tuple[Side, Side]]:
    """Which rows face each other, the baseline's first."""
    for report, chosen in ((a, row), (b, other)):
        if chosen is not None and chosen not in report.rows:
            raise DataError(
                f"there is no row {chosen!r}",
                code="LK0707",
                where=str(report.path),
                next=f"it has {', '.join(map(repr, report.rows))}",
            )
    if row is not None or other is not None:
        mine = row or (other if other in a.rows else _only(a))
        theirs = other or (row if row in b.rows else _only(b))
        return [(Side(a, str(mine)), Side(b, str(theirs)))]
    shared = [name for name in a.rows if name in b.rows]
    return [(Side(a, name), Side(b, name)) for name in shared] or [(Side(a, _only(a)), Side(b, _only(b)))]


def _only(report: Report) -> str:
    """The row that stands for a whole report."""
    if not report.reference and len(report.rows) > 1:
        raise DataError(
            "it has several models, and none is said to be the reference",
            code="LK0707",
            where=str(report.path),
            next=f"choose one: {report.path}:{next(iter(report.rows))}",
        )
    return report.reference or next(iter(report.rows))


def _check_comparable(a: Report, b: Report) -> None:
    if found := reports.obstacles(a, b):
        raise DataError(
            f"the reports cannot be compared: {'; '.join(found)}",
            code="LK0707",
            where=f"{a.path} and {b.path}",
            next="evaluate both on the same data, with the same settings and the same version of llmkit",
        )


def _judge(scored: Sequence[_Scored], max_drop: Mapping[str, float], seed: int) -> gate.Verdict:
    measured = {name for one in scored for name in one.before}
    if unknown := [name for name in max_drop if name not in measured]:
        raise UsageError(f"no metric {unknown[0]!r} to compare", code="LK0707", next=f"there are {', '.join(sorted(measured))}")
    entries = [
        gate.Entry(one.b.label, one.b.numbers, one.after, one.before, identical=all(x == y for x, y in one.texts))
        for one in scored
    ]
    return gate.judge(gate.Limits(max_drop=max_drop), entries, seed=seed)


def _compared(one: _Scored, seed: int) -> Comparison:
    shared = [name for name in one.before if name in one.after]
    tested = bootstrap.paired_many([(one.before[name], one.after[name]) for name in shared], seed=seed)
    metrics = {name: _change(one.before[name], one.after[name], found) for name, found in zip(shared, tested, strict=True)}
    numbers, notes = _numbers(one)
    ranked_by = _RANKED_BY if _RANKED_BY in shared else next(iter(shared), "")
    return Comparison(
        baseline=one.a.label,
        model=one.b.label,
        samples=len(one.keys),
        same=sum(x == y for x, y in one.texts),
        metrics=metrics,
        numbers=numbers,
        ranked_by=ranked_by,
        changed=_changed(one, one.before[ranked_by].samples, one.after[ranked_by].samples) if ranked_by else (),
        notes=tuple(notes),
    )


def _change(before: Tally, after: Tally, found: bootstrap.Paired) -> Change:
    # A drop counts downwards where higher is better, a difference never.
    low, high = (-found.high, -found.low) if before.higher_is_better else (found.low, found.high)
    wins = losses = ties = None
    neutral = before.name in gate.NEITHER_BETTER
    if before.point is None and not neutral:
        gain = (after.samples - before.samples) * (1 if before.higher_is_better else -1)
        wins, losses = (int(np.count_nonzero(one > _TIE)) for one in (gain, -gain))
        ties = len(gain) - wins - losses
    return Change(
        before=before.score,
        after=after.score,
        difference=after.score - before.score,
        low=low,
        high=high,
        p_value=found.p_value,
        wins=wins,
        losses=losses,
        ties=ties,
        unit=before.unit,
        higher_is_better=None if neutral else before.higher_is_better,
    )


def _numbers(one: _Scored) -> tuple[dict[str, tuple[float | None, float | None]], list[str]]:
    """What stands in both rows by itself, and why some of it was left out."""
    numbers = {name: (gate.number(one.a.numbers, name), gate.number(one.b.numbers, name)) for name in NUMBERS}
    numbers = {name: pair for name, pair in numbers.items() if pair != (None, None)}
    apart = reports.incomparable_numbers(one.a.report, one.b.report) if one.a.report is not one.b.report else {}
    notes = [f"{name} is left out: {why}" for name, why in apart.items() if None not in numbers.get(name, (None,))]
    return {name: pair for name, pair in numbers.items() if name not in apart}, notes


def _changed(one: _Scored, before: Floats, after: Floats) -> tuple[Changed, ...]:
    moved = np.abs(after - before)
    # Stable: of equal moves the earlier sample comes first, in every run.
    order = [int(index) for index in np.argsort(-moved, kind="stable")[:MOST_CHANGED] if moved[index] > _TIE]
    texts = one.texts
    found = []
    for index in order:
        sample = one.a.report.by_key[one.keys[index]]
        scores = float(before[index]), float(after[index])
        found.append(Changed(sample.id, sample.prompt, sample.reference, *texts[index], *scores))
    return tuple(found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
