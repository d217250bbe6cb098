"""Which recipe a command means, and what this workspace was last run with."""

import json
from collections.abc import Sequence
from pathlib import Path

from llmkit import artifact, progress
from llmkit.errors import UsageError


def remember(workspace: Path, name: str, overrides: Sequence[str]) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    path = Path(name)
    kept = str(path.resolve()) if path.is_file() else name
    artifact.write_json(workspace / "last.json", {"recipe": kept, "set": list(overrides)})


def recall(workspace: Path, name: str | None, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe to use and its overrides: the one named, ./llmkit.yaml, or the last one run here with what it was run with."""
    if name:
        return name, list(overrides)
    if Path("llmkit.yaml").is_file():
        progress.note("recipe: ./llmkit.yaml")
        return "llmkit.yaml", list(overrides)
    try:
        last = json.loads((workspace / "last.json").read_text("utf-8"))
        given, kept = str(last["recipe"]), [str(one) for one in last["set"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UsageError("which recipe?", code="LK0101", next="say --recipe NAME, for example --recipe quickstart") from None
    shown = "".join(f" --set {one}" for one in kept)
    progress.note(f"recipe: {given}{shown} (the last one run here)")
    return given, [*kept, *overrides]
