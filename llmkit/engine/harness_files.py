"""Reads the task files of lm-evaluation-harness. Knows their YAML and where the harness keeps its own; runs nothing they name.

The harness itself is not imported: that takes seconds, and its loader would import the Python that a file names.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from llmkit.errors import UsageError

MAX_FILE_BYTES = 1_000_000
MAX_INCLUDES = 20
WRITE = "see lm-evaluation-harness's guide to task files"


class Function(str):
    """What stands for `!function module.name`: Python that is not to be run here."""


@dataclass(frozen=True)
class Catalogue:
    """The harness's own tasks and groups, each with its file, and its tags with their tasks."""

    files: dict[str, Path]
    tags: dict[str, set[str]]


def merged(path: Path, *, strict: bool, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with what it includes; its own keys win. `strict`: it may be a stranger's.

    Raises:
        UsageError: it cannot be read, or includes itself.
    """
    if path.resolve() in above or len(above) > MAX_INCLUDES:
        raise UsageError("this task file includes itself", code="LK0714", where=str(path), next="take the include out")
    config = _parsed(path, strict=strict)
    found: dict[str, Any] = {}
    for include in listed(config.pop("include", None)):
        found |= merged(path.parent / include, strict=strict, above=(*above, path.resolve()))
    return {**found, **config}


def included(path: Path) -> Iterator[Path]:
    """The files that a stranger's task file includes, and those that these do. It must be one that `merged` takes."""
    for include in listed(_parsed(path, strict=True).get("include")):
        yield path.parent / include
        yield from included(path.parent / include)


def listed(value: Any) -> list[str]:
    """A value that may be one text or several."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


@cache
def catalogue() -> Catalogue:
    """What the installed harness brings: 14,000 names."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    files: dict[str, Path] = {}
    tags: dict[str, set[str]] = defaultdict(set)
    seen: dict[Path, _Header] = {}
    for path in sorted(Path(spec.submodule_search_locations[0], "tasks").rglob("*.yaml"), key=Path.as_posix):
        header = _header(path, seen)
        is_group = "group" in header and "class" not in header
        name = next(iter(header.get("group" if is_group else "task", ())), "")
        if name and name not in files:
            files[name] = path
            for tag in () if is_group else header.get("tag", ()):
                tags[tag].add(name)
    return Catalogue(files, dict(tags))


# The few keys that make a task findable, with their values.
_Header = Mapping[str, list[str]]
# A key at the line's start, its value on the line or listed below. Parsing all files as YAML would take 8 s.
_KEY = re.compile(
    r"""^["']?(task|group|tag|include|class)["']?[ \t]*:[ \t]*([^\n#]*)(?:#[^\n]*)?((?:\n[ \t]*-[ \t][^\n]*)*)""", re.MULTILINE
)


def _header(path: Path, seen: dict[Path, _Header]) -> _Header:
    if path not in seen:
        seen[path] = {}  # what includes itself adds nothing
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError:
            return seen[path]
        own = {key: list(_values(line, block)) for key, line, block in _KEY.findall(text)}
        above: dict[str, list[str]] = {}
        for include in own.pop("include", ()):
            above |= _header((path.parent / include).resolve(), seen)
        seen[path] = above | own
    return seen[path]


def _values(line: str, block: str) -> Iterator[str]:
    words = line.strip().strip("[]").split(",") if line.strip() else [part.strip()[1:] for part in block.splitlines()]
    yield from (word for part in words if (word := part.strip().strip("\"'")))


class _Loader(yaml.SafeLoader):
    """Knows `!function`, and does not follow it."""


class _StrictLoader(_Loader):
    """For a stranger's file: by aliases a few lines stand for billions."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "!function takes a name", node.start_mark)
    return Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _parsed(path: Path, *, strict: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UsageError(f"a task file of more than {MAX_FILE_BYTES:,} bytes", code="LK0714", where=str(path), next=WRITE)
        found = yaml.load(content, _StrictLoader if strict else _Loader)  # noqa: S506 - both are safe loaders
    except OSError as error:
        raise UsageError(f"cannot read this task file: {error.strerror or error}", code="LK0714", where=str(path)) from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UsageError(f"this task file is not YAML: {why}", code="LK0714", where=str(path), next=WRITE) from error
    if not isinstance(found, dict):
        raise UsageError("a task file holds a mapping", code="LK0714", where=str(path), next=WRITE)
    return found
