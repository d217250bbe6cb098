"""Tells whole checkpoints from torn ones. Knows folders and markers; nothing of what a checkpoint holds.

A checkpoint counts once its marker stands beside what the trainer wrote: the marker is written last, and names the run
it belongs to, so that another configuration's checkpoint is never resumed.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmkit.artifact import write_json

MARKER = "complete.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: after `step` optimizer steps, which took `seconds`."""

    path: Path
    step: int
    seconds: float


def mark(path: Path, *, run: str, seconds: float) -> None:
    """Declare the checkpoint in `path` whole, after its bytes have reached the disk."""
    files = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
    for name in files:
        with (path / name).open("rb") as stream:
            os.fsync(stream.fileno())
    write_json(path / MARKER, {"run": run, "seconds": seconds, "files": files})


def newest(folder: Path, *, run: str) -> Checkpoint | None:
    """The last whole checkpoint of `run` in `folder`; every torn or foreign one is removed."""
    found = []
    for path in folder.glob(f"{PREFIX}*"):
        checkpoint = _read(path, run)
        if checkpoint is None:
            shutil.rmtree(path)
        else:
            found.append(checkpoint)
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def _read(path: Path, run: str) -> Checkpoint | None:
    try:
        marker = json.loads((path / MARKER).read_text("utf-8"))
        whole = marker["run"] == run and all((path / name).stat().st_size == size for name, size in marker["files"].items())
        return Checkpoint(path, int(path.name.removeprefix(PREFIX)), float(marker["seconds"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
