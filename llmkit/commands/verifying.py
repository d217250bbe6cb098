"""`llmkit verify`: whether artifacts, a whole workspace of them, or a GGUF file are what was published."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit import artifact, progress
from llmkit.artifact import Artifact
from llmkit.commands import workspace
from llmkit.commands.result import Result
from llmkit.errors import FidelityError, UsageError
from llmkit.report import lineage
from llmkit.report.gguf import visible

_TOLD = 3  # problems in the error's own line; the tree has them all


@dataclass(frozen=True)
class Checked:
    """One artifact hashed again: `problems` has a line for each file that is not as recorded."""

    path: str
    kind: str
    fingerprint: str
    files: int
    problems: list[str]


def verify(path: Path) -> Result:
    """Hash every file of an artifact again, of every artifact in a run or in a workspace, or one GGUF file.

    Raises:
        UsageError: there is nothing whose hashes are known.
        DataError: a GGUF file without a manifest that is damaged.
    """
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return _verified_file(path)
    found = list(_artifacts(path))
    if not found:
        raise UsageError(
            "no artifact here, and none in its folders",
            code="LK0112",
            where=str(path),
            next="name what llmkit wrote: an artifact, a run's folder, or the folder that holds the runs",
        )
    checked = []
    with progress.track("verify", total=len(found)) as bar:
        for folder in found:
            checked.append(_checked(folder))
            bar.advance(text=folder.name)
    files, problems = sum(one.files for one in checked), sum(len(one.problems) for one in checked)
    counted = f"{_many(len(checked), 'artifact')}, {_many(files, 'file')}: "
    lines = [*_tree(path, checked), counted + (_many(problems, "problem") if problems else "all as recorded")]
    data = {"artifacts": len(checked), "files": files, "problems": problems, "checked": [asdict(one) for one in checked]}
    return Result("\n".join(lines), data, _failure(path, checked))


def _artifacts(path: Path) -> Iterator[Path]:
    """The folders with a manifest: this one, else those in it, else those in its folders; hidden ones are work under way."""
    if (path / artifact.MANIFEST).is_file():
        yield path
        return
    for folder in _visible(path):
        if (folder / artifact.MANIFEST).is_file():
            yield folder
        else:
            yield from (inner for inner in _visible(folder) if (inner / artifact.MANIFEST).is_file())


def _visible(path: Path) -> list[Path]:
    return [one for one in workspace.folders(path) if not one.name.startswith(".")]


def _checked(folder: Path) -> Checked:
    found = lineage.read(folder)
    if found is None:
        return Checked(str(folder), "", "", 0, [f"damaged: {artifact.MANIFEST}"])
    manifest = found.manifest
    return Checked(str(folder), str(manifest.kind), found.fingerprint, len(manifest.files), artifact.verify(found))


def _tree(root: Path, checked: Sequence[Checked]) -> list[str]:
    if len(checked) == 1 and checked[0].path == str(root):
        return [f"{visible(root)}: {_told(checked[0])}", *(f"  {visible(one)}" for one in checked[0].problems)]
    lines, above = [visible(root)], Path()
    for number, one in enumerate(checked, 1):
        parts = Path(one.path).relative_to(root).parts
        if len(parts) > 1 and Path(parts[0]) != above:
            above = Path(parts[0])
            lines.append(f"├─ {visible(above)}")
        indent = "│  " * (len(parts) - 1)
        last = number == len(checked) or Path(checked[number].path).parent != Path(one.path).parent
        lines.append(f"{indent}{'└─' if last else '├─'} {visible(parts[-1])}: {_told(one)}")
        lines += [f"{indent}{'   ' if last else '│  '}  {visible(problem)}" for problem in one.problems]
    return lines


def _told(one: Checked) -> str:
    if not one.kind:
        return "problem"
    return f"{one.kind}, {_many(one.files, 'file')}, {_many(len(one.problems), 'problem') if one.problems else 'ok'}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _failure(path: Path, checked: Sequence[Checked]) -> FidelityError | None:
    problems = [f"{one.path}: {problem}" for one in checked for problem in one.problems]
    if not problems:
        return None
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return FidelityError(
        visible("; ".join(problems[:_TOLD]) + more),
        code="LK0114",
        where=str(path),
        next="run the recipe again with --force, or restore the files",
    )


def _verified_file(path: Path) -> Result:
    """A GGUF file, all its parts, against the manifest beside it; without one, whether it is whole and of our making."""
    from llmkit.gguf import container

    parts = [part.path for part in container.open_split(path)] if path.is_file() else [path]
    beside = lineage.read(path.parent)
    if beside and path.name in beside.manifest.files:
        problems = [line for part in parts for line in _against(beside, part)]
        one = Checked(str(path), str(beside.manifest.kind), beside.fingerprint, len(parts), problems)
        data = {"artifacts": 0, "files": len(parts), "problems": len(problems), "checked": [asdict(one)]}
        lines = [
            f"{visible(path)}: {_told(one)}, by {artifact.MANIFEST} beside it",
            *(f"  {visible(line)}" for line in problems),
        ]
        return Result("\n".join(lines), data, _failure(path, [one]))
    return _unrecorded(path, container.open_file(path).metadata)


def _against(beside: Artifact, part: Path) -> list[str]:
    entry = beside.manifest.files.get(part.name)
    if entry is None:
        return [f"not in the manifest: {part.name}"]
    if not part.is_file():
        return [f"missing: {part.name}"]
    return [] if artifact.sha256_file(part) == entry["sha256"] else [f"changed: {part.name}"]


def _unrecorded(path: Path, keys: Any) -> Result:
    made_of = keys.get("llmkit.fingerprint")
    if not isinstance(made_of, str):
        raise UsageError(
            "nothing here says what this file was when it was written",
            code="LK0112",
            where=str(path),
            next=f"it needs the {artifact.MANIFEST} of its folder; `llmkit inspect` says what is wrong with it as a model",
        )
    told = f"whole, made by llmkit of the model {visible(made_of[:16])}; its bytes are known to the {artifact.MANIFEST} alone"
    data = {"artifacts": 0, "files": 1, "problems": 0, "checked": [], "model": made_of}
    return Result(f"{visible(path)}: {told}, and none is beside it", data)
