"""What a command gives back, and what of it is shown. Knows reports and manifests; nothing of options."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError, GateError, LlmkitError


@dataclass(frozen=True)
class Result:
    """What a command found: `text` for stdout, or `data` as one JSON object under --json.

    `failure`: what the exit code and stderr tell once that is printed.
    """

    text: str
    data: Mapping[str, Any]
    failure: LlmkitError | None = None


def report_of(made: Artifact) -> dict[str, Any]:
    path = made.path / "report.json"
    return {"report": json.loads(path.read_text("utf-8"))} if path.is_file() else {}


def shown(made: Artifact) -> list[str]:
    """The artifact's report in short: what cleaning dropped, how training went, or what was measured."""
    if made.manifest.step == "finetune":
        return _trained(made)
    report = report_of(made).get("report")
    if not report:
        return []
    if made.manifest.kind is Kind.DATASET:
        from llmkit.report import cleaning

        return [cleaning.summary(report), f"the whole report: {made.path / 'report.html'}"]
    from llmkit.report import table

    lines = [table.render(report, width=width(), color=False)]
    if report.get("gate"):
        from llmkit.report import verdict

        lines.append(verdict.render(report["gate"], width=width(), color=False))
    from llmkit.report import brief

    lines += brief.lines(report)
    pages = {"the whole report": "report.html", "to be rated": "review.html"}
    return [*lines, *(f"{what}: {made.path / name}" for what, name in pages.items() if (made.path / name).is_file())]


def _trained(made: Artifact) -> list[str]:
    facts = made.facts
    before, after, best = facts.get("valid_loss_before"), facts.get("valid_loss_after"), facts.get("best_step")
    lines = [] if before is None else [f"loss on held-out dialogues: {before:.3f} → {after:.3f}"]
    kept = f"; kept: step {best}" if best and best != facts["steps"] else ""
    lines.append(f"{facts['steps']} steps over {facts['records']} records at {facts['tokens_per_second']:.0f} tokens/s{kept}")
    return [*lines, f"curves and sample answers: {made.path / 'report.html'}"]


def judged(gate: Mapping[str, Any] | None) -> LlmkitError | None:
    """What a gate's verdict means for the exit code: 1 for a failure, 2 where it cannot be told."""
    from llmkit.evaluation import judging

    if gate is None or gate["verdict"] == "pass":
        return None
    why = judging.failure(gate)
    if gate["verdict"] == "fail":
        return GateError(f"the gate failed: {why}", code="LK0704")
    few = any(check["samples_needed"] for check in gate["checks"])
    remedy = "give it more samples, or allow a larger drop" if few else "measure that, or leave the limit or the row out"
    return DataError(f"the gate cannot tell: {why}", code="LK0705", next=remedy)


def width() -> int:
    return shutil.get_terminal_size((110, 24)).columns
