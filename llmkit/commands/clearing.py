"""`llmkit clean-up`: shows what can be deleted and what that frees, and deletes it where told to."""

import fcntl
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from llmkit import artifact
from llmkit.commands import leftovers, workspace
from llmkit.commands.leftovers import Leftover
from llmkit.commands.result import Result
from llmkit.errors import MachineError
from llmkit.report.gguf import visible
from llmkit.report.lineage import near


def clean_up(place: Path, *, yes: bool) -> Result:
    """What of the runs in `place`, of the shared cache and of our logs can go; with `yes` it goes.

    Each run's folder is locked from the first look to the last deletion; one where an llmkit is working is left alone.
    What could not be deleted is the result's failure, a MachineError.
    """
    with ExitStack() as locks:
        busy: list[Path] = []
        runs: list[Path] = []
        for run in workspace.runs(place):
            (runs if _lock(run, locks) else busy).append(run)
        found, going = leftovers.all_of(place, runs)
        sizes = leftovers.freed(found)
        failures = [line for one in found if (line := _delete(one.path))] if yes else []
    kept = [{"path": str(run), "why": "an llmkit is working here"} for run in busy]
    kept += [{"path": str(path), "why": "the next run goes on from it"} for path in going]
    items = [{"path": str(one.path), "why": one.why, "bytes": size} for one, size in zip(found, sizes, strict=True)]
    lines = [*_listed(found, sizes), *(f"left alone: {visible(near(Path(one['path'])))}: {one['why']}" for one in kept)]
    lines.append(_summed(len(found), sum(sizes), yes=yes))
    data = {"items": items, "bytes": sum(sizes), "kept": kept, "deleted": yes, "failures": failures}
    return Result("\n".join(lines), data, _failed(failures))


def _lock(run: Path, locks: ExitStack) -> bool:
    """Take the lock that a run takes; False where it is taken."""
    try:
        handle = os.open(run / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
        locks.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _delete(path: Path) -> str:
    """Delete a file or a folder; what kept it from being deleted, else ""."""
    try:
        if path.is_dir() and not path.is_symlink():
            # Its manifest first: half a folder is never taken for a whole artifact.
            (path / artifact.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _listed(found: Sequence[Leftover], sizes: Sequence[int]) -> list[str]:
    named = [visible(near(one.path)) for one in found]
    width = max(map(len, named), default=0)
    return [f"{size / 1e6:>10,.1f} MB  {name:<{width}}  {one.why}" for one, size, name in zip(found, sizes, named, strict=True)]


def _summed(count: int, size: int, *, yes: bool) -> str:
    if not count:
        return "nothing to clean up"
    what = f"{count} {'place' if count == 1 else 'places'}, {size / 1e6:,.1f} MB"
    return f"deleted: {what}" if yes else f"{what}; nothing is deleted without --yes"


def _failed(failures: Sequence[str]) -> MachineError | None:
    if not failures:
        return None
    return MachineError(
        f"{len(failures)} could not be deleted: {failures[0]}", code="LK0980", next="mend the permissions, or delete it by hand"
    )
