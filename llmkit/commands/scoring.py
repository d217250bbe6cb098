"""`llmkit eval --predictions` and `compare`: texts and reports, no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmkit.commands.result import Result, judged, width
from llmkit.errors import UsageError


def score(predictions: Path, references: Path, output: Path, *, compat: Sequence[str], force: bool) -> Result:
    """`llmkit eval --predictions P --references R --output DIR`: scores of texts alone."""
    from llmkit.evaluation import texts

    report, samples = texts.score_files(predictions, references, compat=compat)
    if output.exists() and not force:
        raise UsageError(
            "the output is there already",
            code="LK0107",
            where=str(output),
            next="name another --output, or --force to replace its report.json",
        )
    output.mkdir(parents=True, exist_ok=True)
    texts.write(report, samples, output)
    (model,) = report["models"].values()
    lines = [_scored(name, value, model["intervals"].get(name)) for name, value in model["metrics"].items()]
    lines += [f"{name}: {signature}" for name, signature in report["signatures"].items()]
    return Result("\n".join([*lines, f"{report['n_samples']} samples; intervals of 95 %"]), report)


def _scored(name: str, value: float, interval: Sequence[float] | None) -> str:
    return f"{name:<13} {value:6.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def compare(names: Sequence[str], max_drop: Mapping[str, float], *, markdown: Path | None, junit: Path | None) -> Result:
    """`llmkit compare A B [C…]`: reports sample by sample, and a verdict where --max-drop asks for one."""
    from llmkit.evaluation import judging
    from llmkit.metrics import compare as comparing
    from llmkit.report import comparison
    from llmkit.report import junit as unit

    if junit and not max_drop:
        raise UsageError("--junit tells of a gate", code="LK0105", next="add --max-drop METRIC=POINTS")
    compared = comparing.compare(names, max_drop=max_drop, score=judging.tallies)
    data = compared.to_json()
    for path in filter(None, (markdown, junit)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if markdown:
        markdown.write_text(comparison.markdown(data) + "\n", encoding="utf-8")
    if junit:
        junit.write_text(unit.xml(data["gate"]), encoding="utf-8")
    return Result(comparison.render(data, width=width(), color=False), data, judged(data["gate"]))
