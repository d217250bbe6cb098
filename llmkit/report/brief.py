"""What an evaluation says beside its table, a line each: what to ship, programs, benchmarks, people. Knows a report's keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.report import html, recommend, table, values
from llmkit.report.values import Part, finite, part


def lines(report: Mapping[str, Any]) -> list[str]:
    """Plain text; nothing for what was not measured."""
    found = [*_scores(report), *_tasks(report), *_code(report), *_review(report)]
    return [html.line(one) for one in [*recommend.choose(report).because[:1], *found]]


def _scores(report: Part) -> Iterator[str]:
    """What the table has no column for, and someone asked for."""
    rows = values.rows(report)
    names = dict.fromkeys(str(name) for row in rows.values() for name in part(row, "metrics"))
    for metric in names:
        if metric == "sensitive" or "." in metric:
            yield _each(metric, {name: part(row, "metrics").get(metric) for name, row in rows.items()}, 1)


def _tasks(report: Part) -> Iterator[str]:
    for task in part(report, "tasks"):
        held = part(report, "tasks", task)
        metrics = dict.fromkeys(str(metric) for name in held for metric in part(held, name))
        for metric in metrics:
            if not metric.endswith("_stderr"):
                yield _each(f"{task} {metric}", {name: part(held, name).get(metric) for name in held}, 3)


def _code(report: Part) -> Iterator[str]:
    code = part(report, "code")
    for metric in dict.fromkeys(str(key) for name in code for key in part(code, name) if str(key).startswith("pass@")):
        yield _each(metric, {name: part(code, name).get(metric) for name in code}, 1)


def _review(report: Part) -> Iterator[str]:
    found = part(report, "review")
    rate, models = finite(found.get("win_rate")), [str(one) for one in values.items(found, "models")]
    ends = values.interval({"intervals": {"win_rate": found.get("interval")}}, "win_rate")
    if rate is not None and len(models) == 2:
        told = f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]" if ends else ""
        yield f"people: {models[0]} wins {100 * rate:.0f} %{told} against {models[1]}, ties by half"


def _each(what: str, found: Mapping[str, Any], digits: int) -> str:
    return f"{what}: " + ", ".join(f"{name} {table.spelled(value, digits)}" for name, value in found.items())
