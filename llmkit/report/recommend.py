"""Which variant to ship, by one plain rule. Knows a report's numbers; measures nothing and draws nothing.

The rule: of the variants that keep what the reference row does, the smallest; of those within 5 % of its size, the one
whose next-token distribution is nearest the reference's. A variant does not keep it if

- it lost the fine-tune (retention below the floor) or failed a check of the gate,
- its score is no number, or
- its score fell by more than half a point *and* the fall can be told from none: the 95 % interval of the paired difference
  lies above zero or, where a report has no paired differences, the two 95 % intervals do not touch.

So a difference that may be noise counts as none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.report import table, values
from llmkit.report.values import Part, finite, part

TOLERANCE = 0.5  # points: a smaller fall is no reason for a larger file
_ALIKE = 1.05  # sizes with a lower ratio count as equal
_FASTER = 1.1  # times the speed that is worth a mention
_QUALITY = {"rougeL": "ROUGE-L", "chrf": "chrF", "bleu": "BLEU"}


@dataclass(frozen=True)
class Choice:
    """What to ship. `name`: None where nothing can be; `because`: sentences, the first one the advice; `refused`: name → why.

    With no sentence there was nothing to choose between.
    """

    name: str | None = None
    because: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def choose(report: Mapping[str, Any]) -> Choice:
    """Apply the rule to the rows of a report that have a size, the base left out unless it is the reference.

    `report["models"][NAME]["drops"]`, if there: metric → [fall from the reference row, low, high], paired, 95 %.
    """
    metric = quality(report)
    rows = candidates(report)
    if metric is None or len(rows) < 2:
        return Choice()
    name = str(report.get("reference"))
    refused = {one: why for one, row in rows.items() if (why := _refusal(one, row, report, metric))}
    kept = {one: row for one, row in rows.items() if one not in refused}
    if not kept:
        return Choice(None, ("Ship none of these: not one keeps what it should.",), refused)
    smallest = min(kept, key=lambda one: _size(kept[one]))
    alike = [one for one, row in kept.items() if _size(row) <= _ALIKE * _size(kept[smallest])]
    best = min(alike, key=lambda one: (_distance(one, kept[one], name), _size(kept[one])))
    return Choice(best, tuple(_because(best, smallest, kept, report, metric)), refused)


def quality(report: Mapping[str, Any]) -> str | None:
    """The metric that stands for quality: the first of ROUGE-L, chrF and BLEU that the reference row has."""
    row = part(report, "models", str(report.get("reference")), "metrics")
    return next((metric for metric in _QUALITY if finite(row.get(metric)) is not None), None)


def title(metric: str) -> str:
    return _QUALITY.get(metric, metric)


def candidates(report: Mapping[str, Any]) -> dict[str, Part]:
    """The rows that could be shipped: those with a size, without the model before the fine-tune."""
    before = table.BASE if report.get("reference") != table.BASE else None
    return {name: row for name, row in values.rows(report).items() if name != before and _size(row) > 0}


def front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The Pareto front: names with no other that is as cheap and as good, and cheaper or better; name → (cost, score)."""
    kept, best = set(), None
    for (cost, negative), name in sorted(((cost, -score), name) for name, (cost, score) in points.items()):
        if best is None or negative < best[1] or (cost, negative) == best:
            kept.add(name)
            best = cost, negative
    return kept


def told_apart(name: str, report: Mapping[str, Any], metric: str) -> tuple[float, bool]:
    """How far `name` lies below the reference row in `metric`, and whether that is more than noise; a rise is negative."""
    rows = part(report, "models")
    row, reference = part(rows, name), part(rows, str(report.get("reference")))
    paired = [finite(one) for one in values.items(part(row, "drops"), metric)]
    if len(paired) == 3 and paired[0] is not None and paired[1] is not None:
        return paired[0], paired[1] > 0
    score, expected = (finite(part(one, "metrics").get(metric)) for one in (row, reference))
    if score is None or expected is None:
        return 0.0, False
    ends, bounds = values.interval(row, metric), values.interval(reference, metric)
    return expected - score, ends is not None and bounds is not None and ends[1] < bounds[0]


def _refusal(name: str, row: Part, report: Mapping[str, Any], metric: str) -> str:
    """Why the row must not be shipped, else nothing."""
    if table.lost_fine_tune(name, row):
        kept = table.spelled(row.get("retention"), 3)
        return f"lost the fine-tune (retention {kept}, the floor is {table.RETENTION_FLOOR})"
    if row.get("changed") is True:
        return "its files are not those that were published"
    failed = [one.get("metric") for one in values.parts(part(report, "gate"), "checks") if _is(one, name, "fail")]
    if failed:
        return f"failed the gate ({', '.join(dict.fromkeys(title(str(one)) for one in failed))})"
    if finite(part(row, "metrics").get(metric)) is None:
        return f"has no {title(metric)}"
    drop, certain = told_apart(name, report, metric)
    if certain and drop > TOLERANCE:
        return f"answers worse: {title(metric)} {drop:.1f} points below {report.get('reference')}, more than chance"
    return ""


def _is(check: Part, name: str, verdict: str) -> bool:
    return str(check.get("model")) == name and check.get("verdict") == verdict


def _size(row: Part) -> float:
    return finite(row.get("size_bytes")) or 0.0


def _distance(name: str, row: Part, reference: str) -> float:
    """KL from the reference; what was not measured is farther than what was."""
    kl = finite(row.get("kl"))
    return 0.0 if name == reference else float("inf") if kl is None else kl


def _because(best: str, smallest: str, kept: Mapping[str, Part], report: Mapping[str, Any], metric: str) -> Iterable[str]:
    reference, row = str(report.get("reference")), kept[best]
    size, whole = table.size(row.get("size_bytes")), _size(part(report, "models", reference))
    if best == reference:
        yield f"Ship {best} itself ({size}): no smaller variant keeps what it does."
    else:
        share = f", {100 * _size(row) / whole:.0f} % of {reference}" if whole else ""
        rank = "the smallest that keeps" if best == smallest else "one of the smallest that keep"
        yield f"Ship {best} ({size}{share}): {rank} what {reference} does."
    if best != smallest:
        kls = [table.spelled(0.0 if one == reference else kept[one].get("kl"), 3) for one in (best, smallest)]
        yield f"{smallest} is of the same size within 5 %, but {best} is nearer to {reference} (KL {kls[0]} against {kls[1]})."
    yield from _noise(best, reference, report, metric)
    speeds = {one: finite(other.get("tokens_per_second")) or 0.0 for one, other in kept.items()}
    fastest = max(speeds, key=speeds.__getitem__)
    if speeds[fastest] > _FASTER * speeds[best] > 0:
        larger = table.size(kept[fastest].get("size_bytes"))
        yield f"Where speed counts more than size, {fastest} is {speeds[fastest] / speeds[best]:.1f} times as fast ({larger})."
    if any(_is(one, best, "unknown") for one in values.parts(part(report, "gate"), "checks")):
        yield f"The gate could not tell whether {best} passes: more samples would."


def _noise(best: str, reference: str, report: Mapping[str, Any], metric: str) -> Iterable[str]:
    """What the score says of the advice, and how sure it is."""
    if best == reference:
        return
    rows = part(report, "models")
    score, expected = (finite(part(rows, name, "metrics").get(metric)) for name in (best, reference))
    drop, certain = told_apart(best, report, metric)
    known = values.interval(part(rows, best), metric) or values.items(part(rows, best, "drops"), metric)
    against = f"The {title(metric)} of {best} is {table.spelled(score, 1)} against {table.spelled(expected, 1)}"
    count = finite(report.get("n_samples"))
    samples = f" with {count:.0f} samples" if count else ""
    if not known:
        yield f"{against}; the report has no intervals, so nothing says whether that is noise."
    elif not certain:
        yield f"{against}: a difference that{samples} may be noise."
    else:
        yield f"{against}: {drop:.1f} points less, within the half point that is let pass." if drop > 0 else f"{against}."
    if part(rows, best).get("retention") is None and reference != table.BASE:
        yield "How much of the fine-tune it kept was not measured."
