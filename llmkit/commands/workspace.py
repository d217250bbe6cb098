"""What lies in a workspace and beside it, and which recipes are about it. Reads folders and recipes; changes nothing."""

import json
import os
from itertools import islice
from pathlib import Path

from llmkit import origin, pipeline, recipe
from llmkit.errors import LlmkitError
from llmkit.recipe import Recipe

_MOST_ENTRIES = 5000  # of one folder: a neighbour may be anything
_MOST_RECIPES = 1000
_CACHED = ("demo", "gguf")


def folders(place: Path) -> list[Path]:
    """The folders in `place`, links among them not; [] where there is none or it cannot be read."""
    try:
        with os.scandir(place) as entries:
            return sorted(Path(one.path) for one in islice(entries, _MOST_ENTRIES) if one.is_dir(follow_symlinks=False))
    except OSError:
        return []


def runs(workspace: Path) -> list[Path]:
    """The folders of recipe runs: those that a run has locked once."""
    return [one for one in folders(workspace) if (one / ".lock").is_file() and not (one / ".lock").is_symlink()]


def cached() -> list[Path]:
    """The artifacts' folders in the shared cache."""
    return [one for name in _CACHED for one in folders(origin.cache_folder() / name)]


def around(folder: Path) -> list[Path]:
    """Where the inputs of the artifact in `folder` may lie: beside it, in the other runs of its workspace, in the cache."""
    run = Path(os.path.abspath(folder)).parent
    beside = folders(run)
    others = [one for other in folders(run.parent) for one in folders(other)] if (run / ".lock").is_file() else []
    return [*beside, *others, *cached()]


def recipes(workspace: Path) -> tuple[list[Recipe], list[str]]:
    """Every recipe that a run here may have been made by: the last one run, those in this folder and beside the workspace,
    and the bundled ones.

    And the texts of those that do not fit the schema: what such a one names is not known, and may be anything.
    """
    found: list[Recipe] = []
    unread: list[str] = []
    for name, overrides in [*_last(workspace), *((str(path), ()) for path in _files(workspace))]:
        try:
            found.append(recipe.load(recipe.find(name), overrides))
        except LlmkitError:
            unread.append(_text(Path(name)))
    return found, unread


def _last(workspace: Path) -> list[tuple[str, tuple[str, ...]]]:
    try:
        last = json.loads((workspace / "last.json").read_text("utf-8"))
        return [(str(last["recipe"]), tuple(str(one) for one in last["set"]))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def roots(workspace: Path) -> list[Path]:
    """The folders that recipes may have been run in: this one, and the one that holds the workspace."""
    return list(dict.fromkeys((Path.cwd(), workspace.resolve().parent)))


def _files(workspace: Path) -> list[Path]:
    patterns = [(root, pattern) for root in roots(workspace) for pattern in ("*.y*ml", "recipes/*.y*ml")]
    near = [path for root, pattern in patterns for path in islice(sorted(root.glob(pattern)), _MOST_RECIPES)]
    return [*near, *recipe.bundled().values()]


def _text(path: Path) -> str:
    if not path.is_file():
        return path.name
    try:
        with path.open("rb") as stream:
            return stream.read(recipe.MAX_RECIPE_BYTES).decode("utf-8", "replace")
    except OSError:
        return path.name


def labels(folder: Path) -> dict[str, str]:
    """What the origins of the run that `folder` belongs to are called: fingerprint → a path, a hub's id, a demo."""
    run = Path(os.path.abspath(folder)).parent
    found: dict[str, str] = {}
    for chosen in recipes(run.parent)[0]:
        if chosen.name == run.name:
            try:
                origins = pipeline.lay_out(chosen).origins.values()
            except LlmkitError:
                continue
            found |= {one.fingerprint: one.label for one in origins}
    return found
