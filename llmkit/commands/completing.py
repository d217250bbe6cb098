"""What a shell offers on TAB: recipes, their keys, artifacts. Knows names alone; imports late, for TAB must not wait.

Typer asks these with what is typed so far (`llmkit --install-completion` sets it up); an empty answer completes nothing.
"""

from collections.abc import Iterator
from pathlib import Path

_MOST = 200  # names offered at once


def recipes(incomplete: str) -> list[str]:
    """Bundled recipes by name, and recipe files by path."""
    return [*(name for name in _bundled() if name.startswith(incomplete)), *_paths(incomplete, ".yaml", ".yml")][:_MOST]


def assignments(incomplete: str) -> list[str]:
    """For `--set`: keys with their sign, and after the sign a key's choices."""
    from llmkit.schema import keys

    name, sign, _ = incomplete.partition("=")
    known = {one.assignment.partition("=")[0]: one for one in keys() if not one.section}
    offered: list[str] = []
    if not sign:
        offered = [f"{path}=" for path in known]
    elif name in known:
        one = known[name]
        offered = [f"{name}={choice}" for choice in one.choices or (("true", "false") if one.type == "true or false" else ())]
    return [text for text in offered if text.startswith(incomplete)]


def topics(incomplete: str) -> list[str]:
    """For `explain`: keys, and error codes."""
    from llmkit import catalogue
    from llmkit.schema import keys

    offered = [*(one.path for one in keys()), *(entry.code for entry in catalogue.all_entries())]
    return [text for text in offered if text.lower().startswith(incomplete.lower())]


def artifacts(incomplete: str) -> list[str]:
    """Folders that llmkit wrote, here and below runs/, GGUF files, and folders on the way to them."""
    made = {str(path.parent) for pattern in ("*", "*/*", "*/*/*") for path in Path().glob(f"{pattern}/manifest.json")}
    others = (path for path in _paths(incomplete, ".gguf") if path.rstrip("/") not in made)
    return sorted([*(name for name in made if name.startswith(incomplete)), *others])[:_MOST]


def _bundled() -> Iterator[str]:
    """As `recipe.bundled`, without what that has to import."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    folder = inside if inside.is_dir() else package.parent / "recipes"
    yield from sorted(path.stem for path in folder.glob("*.yaml"))


def _paths(incomplete: str, *endings: str) -> Iterator[str]:
    """Files of these endings and folders whose path begins so; hidden ones only where a dot is typed."""
    head, slash, tail = incomplete.rpartition("/")
    try:
        entries = sorted(Path(f"{head}{slash}" or ".").expanduser().iterdir())
    except (OSError, RuntimeError):
        return
    for entry in entries:
        if entry.name.startswith(tail) and (tail.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                yield f"{head}{slash}{entry.name}/"
            elif entry.suffix in endings:
                yield f"{head}{slash}{entry.name}"
