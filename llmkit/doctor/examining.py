"""Runs the groups of probes side by side, each in a process, and gathers what they say. Knows no probe.

A child prints one JSON line as a probe begins and one for each finding, so that what is known when it is killed is kept.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmkit.doctor.finding import Finding

Probe = Callable[[Path], Iterator[Finding]]
# Group → the modules of its probes, in the order that is read. What is slow or may crash has a process of its own.
GROUPS: Mapping[str, Sequence[str]] = {
    "python": ("interpreter", "packages"),
    "machine": ("hardware", "places"),
    "torch": ("accelerator",),
    "native": ("native",),
    "network": ("network",),
}
LIMIT_SECONDS = 45.0  # a busy machine takes five times as long as a quiet one
_SIGNALS = {
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGSEGV: "a crash",
    signal.SIGKILL: "too little memory",
}


def examine(folder: Path, *, limit_seconds: float = LIMIT_SECONDS) -> list[Finding]:
    """Everything that can be said of this machine, group by group.

    Args:
        folder: where runs go; need not exist.
        limit_seconds: after which a group is ended, and said to have been.
    """
    with ThreadPoolExecutor(len(GROUPS)) as executor:
        found = executor.map(lambda group: list(_run(group, folder, limit_seconds)), GROUPS)
    return [one for group in found for one in group]


def _run(group: str, folder: Path, limit_seconds: float) -> Iterator[Finding]:
    """One group's findings; the last may be how its process ended."""
    command = [sys.executable, "-m", "llmkit.doctor", group, str(folder)]
    started = time.monotonic()
    child = subprocess.Popen(  # noqa: S603 - ourselves
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    timer = threading.Timer(limit_seconds, os.killpg, (child.pid, signal.SIGKILL))
    timer.start()
    at = group
    try:
        assert child.stdout
        for line in child.stdout:
            told = _said(line)
            at = told.get("begins", at)
            if "level" in told:
                yield Finding(**told)
        status = child.wait()
    finally:
        timer.cancel()
        child.wait()
    if status:
        late = time.monotonic() - started >= limit_seconds
        yield _broken(at, f"no answer within {limit_seconds:g} s" if late else _ending(status))


def _said(line: str) -> dict[str, Any]:
    """What a line of a child holds; {} for one that a library has printed."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) and {"begins", "level"} & told.keys() else {}


def _ending(status: int) -> str:
    if status < 0:
        why = _SIGNALS.get(signal.Signals(-status), "a crash")
        return f"its process was ended by {signal.Signals(-status).name} ({why})"
    return f"its process ended with status {status}"


def _broken(area: str, what: str) -> Finding:
    return Finding(
        "warning",
        area,
        f"this could not be looked at: {what}",
        "whatever needs it may end in the same way",
        "install the packages again (`pip install --force-reinstall llmkit`), or look at the disk, if it is one that hangs",
    )


def serve(group: str, folder: Path) -> None:
    """The child's part: run each probe of the group and print what it finds."""
    for module in GROUPS[group]:
        _say({"begins": module})
        # A future holds what a probe raises, whatever it is.
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(_probe, module, folder)
            error = future.exception()
        if error is not None:
            text = (str(error).splitlines() or [""])[0][:200]
            _say(asdict(_broken(module, f"{type(error).__name__}: {text}")))


def _probe(module: str, folder: Path) -> None:
    probes: Sequence[Probe] = importlib.import_module(f"llmkit.doctor.{module}").PROBES
    for probe in probes:
        _say({"begins": probe.__name__.strip("_").replace("_", " ")})
        for finding in probe(folder):
            _say(asdict(finding))


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)
