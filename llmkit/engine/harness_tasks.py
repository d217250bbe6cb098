"""Which benchmarks there are, and whether they may be run. Knows names, groups and versions; nothing of models.

A task is one of lm-evaluation-harness's own, by name, or the user's: a YAML file, or a folder of them. All is read from
files, so that a plan can check it: about 3 s where the harness's own 14,000 are looked at, milliseconds where they are not.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit.engine import harness_files
from llmkit.engine.harness_files import WRITE
from llmkit.engine.harness_local import PLAIN_DATA, Definition, data_files, refuse_code, refuse_data, refuse_unfit
from llmkit.errors import MachineError, UsageError

# What people say, and what the harness calls it: the answers to C-Eval's test split are not public.
ALIASES = {"ceval": "ceval-valid"}
SUFFIXES = (".yaml", ".yml")
MAX_FILES = 2_000
MAX_NAME = 100
INSTALL = "pip install 'llmkit[benchmarks]'"


@dataclass(frozen=True)
class Selection:
    """Tasks, groups and tags asked for, by their names in the harness, and all definitions they need, by name.

    `asked` gives each name as it was asked for; `tags` the tasks of each tag.
    """

    asked: Mapping[str, str]
    definitions: Mapping[str, Definition]
    tags: Mapping[str, list[str]]

    def leaves(self, name: str) -> list[Definition]:
        """The tasks that a task, group or tag comes down to."""
        found: dict[str, Definition] = {}
        waiting, seen = [name], set[str]()
        while waiting:
            one = waiting.pop(0)
            if one in seen:
                continue
            seen.add(one)
            definition = self.definitions.get(one)
            if definition is not None and not isinstance(definition.config.get("task"), list):
                found[one] = definition
            waiting += definition.members if definition else self.tags.get(one, [])
        return list(found.values())

    def hub_data(self, name: str) -> list[str]:
        """The data sets that a task needs from the hub."""
        owners = (config.get("dataset_path") for leaf in [*self.leaves(name), *self._of(name)] for config in leaf.configs)
        return list(dict.fromkeys(path for path in owners if isinstance(path, str) and path not in PLAIN_DATA))

    def _of(self, name: str) -> list[Definition]:
        return [self.definitions[name]] if name in self.definitions else []


def check(tasks: Sequence[str], *, allow_code: bool = False) -> None:
    """Fail now rather than after a model is loaded.

    Raises:
        UsageError: no such task (with the nearest names), a task file that cannot be used, one that brings code of its own
            without `allow_code`, or a task that runs what the model writes.
        MachineError: the harness is not installed.
    """
    select(tasks, allow_code=allow_code)


def select(tasks: Sequence[str], *, allow_code: bool = False) -> Selection:
    """The tasks of these names and paths, with all that they need. Raises as `check`."""
    if find_spec("lm_eval") is None:
        raise MachineError("benchmarks need lm-evaluation-harness, which is not installed", code="LK0907", next=INSTALL)
    mine: dict[str, Definition] = {}
    asked: dict[str, str] = {}
    for task in tasks:
        if _is_path(task):
            found, top = _local(Path(task))
            mine |= {one.name: one for one in found}
            asked |= {name: name for name in top}
        else:
            asked[ALIASES.get(task, task)] = task
    for one in mine.values():
        refuse_data(one)
        if not allow_code:
            refuse_code(one)
    definitions, tags = _closure(list(asked), mine)
    for one in definitions.values():
        refuse_unfit(one)
    return Selection(asked, definitions, tags)


def local_files(tasks: Sequence[str]) -> list[Path]:
    """The user's own task files and their data: what a result depends on besides the harness. Raises as `check`."""
    found: set[Path] = set()
    for task in filter(_is_path, tasks):
        for one in _local(Path(task))[0]:
            found |= {one.path, *harness_files.included(one.path), *data_files(one)}
    return sorted(found)


def signatures(selection: Selection, *, limit: int | None, fewshot: int | None) -> dict[str, str]:
    """What the scores of each task are comparable under: versions, examples shown, samples."""
    found = {}
    for name, asked in selection.asked.items():
        leaves = selection.leaves(name)
        head = [selection.definitions[name]] if name in selection.definitions else leaves[:1]
        metadata = head[0].config.get("metadata") if head else None
        parts = {
            "lm-eval": version("lm_eval"),
            "version": metadata.get("version", "?") if isinstance(metadata, dict) else "?",
            "shots": "/".join(map(str, sorted({_shots(leaf.config, fewshot) for leaf in leaves}))),
            "samples": "all" if limit is None else f"first {limit} of each task",
            "chat": "template, shots as turns",
        }
        found[asked] = "|".join(f"{key}:{value}" for key, value in parts.items())
    return found


def _shots(config: Mapping[str, Any], fewshot: int | None) -> int:
    own = config.get("num_fewshot")
    own = own if isinstance(own, int) else None
    # The harness's rule: a task that says 0 keeps it.
    return own or 0 if fewshot is None or own == 0 else fewshot


def _is_path(task: str) -> bool:
    return "/" in task or "\\" in task or task.endswith(SUFFIXES)


def _local(path: Path) -> tuple[list[Definition], list[str]]:
    """What a file or folder of the user's defines, and the names in it that are to be run."""
    if path.is_dir():
        # A link may lead in a circle.
        found = _defined(one for suffix in SUFFIXES for one in path.rglob(f"*{suffix}") if not one.is_symlink())
        inner = {name for one in found.values() for name in one.members}
        top = [name for name in found if name not in inner]
        if not top:
            raise UsageError("this folder defines no task", code="LK0714", where=str(path), next=WRITE)
        return list(found.values()), top
    asked = _definition(path)
    if asked is None:
        raise UsageError("this file defines neither a task nor a group", code="LK0714", where=str(path), next=WRITE)
    if not asked.members:
        return [asked], [asked.name]
    others = _defined(one for suffix in SUFFIXES for one in path.parent.glob(f"*{suffix}") if one != path)
    return [asked, *_needed(asked, others)], [asked.name]


def _defined(files: Iterator[Path]) -> dict[str, Definition]:
    paths = []
    for path in files:
        paths.append(path)
        if len(paths) > MAX_FILES:
            raise UsageError(
                f"more than {MAX_FILES:,} task files",
                code="LK0714",
                where=str(path.parent),
                next="keep yours in a folder alone",
            )
    return {one.name: one for path in sorted(paths) if (one := _definition(path)) is not None}


def _definition(path: Path) -> Definition | None:
    """What a file of the user's defines; None for one that others include."""
    config = harness_files.merged(path, strict=True)
    name = config.get("group" if "group" in config else "task")
    if name is None or isinstance(name, list):
        return None
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise UsageError(
            "this task's name is no short line of text", code="LK0714", where=str(path), next="change `task` or `group`"
        )
    return Definition(name, config, path, local=True)


def _needed(group: Definition, others: Mapping[str, Definition]) -> list[Definition]:
    """Those of `others` that the group comes down to."""
    found: dict[str, Definition] = {}
    waiting = group.members
    while waiting:
        name = waiting.pop()
        if name in others and name not in found:
            found[name] = others[name]
            waiting += others[name].members
    return list(found.values())


def _closure(names: list[str], mine: Mapping[str, Definition]) -> tuple[dict[str, Definition], dict[str, list[str]]]:
    """The definitions of `names` and of all their members, the user's own before the harness's; and the tags among them."""
    found: dict[str, Definition] = {}
    tags: dict[str, list[str]] = {}
    own_tags: dict[str, list[str]] = defaultdict(list)
    for one in mine.values():
        for tag in harness_files.listed(one.config.get("tag")):
            own_tags[tag].append(one.name)
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name in found or name in tags:
            continue
        if name in mine:
            found[name] = mine[name]
        elif name in own_tags:
            tags[name] = own_tags[name]
        elif name in (theirs := harness_files.catalogue()).files:
            path = theirs.files[name]
            found[name] = Definition(name, harness_files.merged(path, strict=False), path, local=False)
        elif name in theirs.tags:
            tags[name] = sorted(theirs.tags[name])
        elif name in names or any(name in one.members for one in mine.values()):
            _refuse_unknown(name, mine)
        # Else a group of the harness's makes it up by itself.
        waiting += found[name].members if name in found else tags.get(name, [])
    return found, tags


def _refuse_unknown(name: str, mine: Mapping[str, Definition]) -> None:
    theirs = harness_files.catalogue()
    known = [*ALIASES, *mine, *theirs.files, *theirs.tags]
    near = get_close_matches(name, known, n=3)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    group = next((one for one in mine.values() if name in one.members), None)
    raise UsageError(
        f"no benchmark is called {name}{guess}",
        code="LK0713",
        where=str(group.path) if group else "",
        next=f"lm-evaluation-harness has {len(theirs.files):,}; a task of your own is a path: ./tasks/mine.yaml",
    )
