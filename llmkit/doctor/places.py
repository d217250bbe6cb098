"""The folders that llmkit writes to: whether it may, and how much fits. Knows no contents."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmkit import origin
from llmkit.doctor.finding import Finding

_ROOM = {"runs": 5 * 2**30, "cache": 5 * 2**30, "temporary files": 2**30}  # bytes: the quickstart takes about 3 GB
_MEND = {
    "runs": "free some, or say --workspace FOLDER on a larger disk",
    "cache": "`llmkit clean-up` shows what can go; XDG_CACHE_HOME moves it",
    "hub cache": "`hf cache prune` frees some; HF_HOME moves it",
    "temporary files": "free some, or set TMPDIR to a folder on a larger disk",
}


def disks(folder: Path) -> Iterator[Finding]:
    places = {
        "runs": folder,
        "cache": origin.cache_folder(),
        "hub cache": _hub_cache(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        yield _place(name, place.expanduser().absolute())


def _place(name: str, place: Path) -> Finding:
    there = next(one for one in (place, *place.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("error", "disk", f"{name}: {there} cannot be written to", mend=f"ls -ld {there}; {_MEND[name]}")
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".llmkit-doctor-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return Finding("error", "disk", f"{name}: nothing can be written to {there}: {error.strerror}", mend=_MEND[name])
    free = shutil.disk_usage(there).free
    told = f"{name}: {free / 1e9:.0f} GB free in {there}"
    if free < _ROOM.get(name, 2**30):
        return Finding(
            "warning", "disk", told, "a merged model takes two bytes a weight, each GGUF file up to one", _MEND[name]
        )
    return Finding("ok", "disk", told)


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched, by its own rules."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"))


PROBES = (disks,)
