"""`llmkit doctor`: what is wrong with this machine, and the command that mends it."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from llmkit import doctor
from llmkit.commands.result import Result
from llmkit.errors import MachineError
from llmkit.report import doctor as report


def examine(workspace: Path) -> Result:
    """Look at everything; a failure (exit code 3) only where something that llmkit needs is broken."""
    started = time.monotonic()
    findings = [asdict(one) for one in doctor.examine(workspace)]
    counts = Counter(one["level"] for one in findings)
    data = {"findings": findings, "counts": {level: counts[level] for level in doctor.LEVELS}}
    failure = None
    if counts["error"]:
        what = f"{counts['error']} thing{'s' if counts['error'] > 1 else ''} that llmkit needs is broken or missing"
        failure = MachineError(what, code="LK0960", where="this machine", next="do what stands behind each → above")
    return Result(report.render(findings, seconds=time.monotonic() - started), data, failure)
