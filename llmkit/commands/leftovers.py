"""What llmkit has left in a workspace, in the shared cache and in the folder for temporary files, and no longer needs.

Knows which recipes are about a run, and what they and their artifacts refer to. Deletes nothing. Where it is not sure that
something is llmkit's own, whole, unused and unreferenced, it does not name it; links are never followed.
"""

import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any

from llmkit import artifact, origin, pipeline
from llmkit.artifact import Artifact
from llmkit.commands import workspace
from llmkit.errors import LlmkitError
from llmkit.pipeline import Planned
from llmkit.recipe import Recipe
from llmkit.report import lineage

_DAY = 86_400.0
_STILL_BUILDING = 600.0  # seconds without a write: another machine or container may share the folder, and no process be seen
_IDLE = {"artifact": 7 * _DAY, "answers": 30 * _DAY, "log": _DAY}
_MOST_FILES = 100_000
_STAGED = re.compile(r"(?P<node>.+)-(?P<fingerprint>[0-9a-f]{16})")
_BUILDING = re.compile(r"\.building-.+-(?P<process>\d{1,10})")
_RETIRED = re.compile(r"\.(?P<name>.+)\.old")
_ANSWERS = re.compile(r"[0-9a-f]{32}\.jsonl")
_LOG = re.compile(r"llmkit-[a-z0-9_]{8}\.log")
_RESUMABLE = ("finetune", "eval")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Known:
    """What recipes say of the runs. `planned`: verdicts by run; `unclear`: runs that a recipe which cannot be read may name;
    `used`: folders and fingerprints that are referred to."""

    planned: Mapping[str, Sequence[Planned]]
    unclear: frozenset[str]
    places: frozenset[Path]
    fingerprints: frozenset[str]


def know(place: Path, runs: Sequence[Path]) -> Known:
    """What the recipes about the workspace `place` need of it, and what the artifacts they need were made of."""
    names = {run.name for run in runs}
    recipes, unread = workspace.recipes(place)
    planned: dict[str, list[Planned]] = {}
    unclear = {name for name in names for text in unread if name in text}
    wanted: set[str] = set()
    for chosen in recipes:
        if chosen.name in names:
            try:
                laid = pipeline.lay_out(chosen)
                planned.setdefault(chosen.name, []).extend(pipeline.plan(laid, place / chosen.name))
                wanted |= {one.fingerprint for one in laid.origins.values()}
                if not all(one.ready for one in laid.origins.values()):
                    unclear.add(chosen.name)  # fingerprints are other ones once it is here
            except LlmkitError:
                unclear.add(chosen.name)
    places = {path for chosen in recipes for root in workspace.roots(place) for path in _named(chosen, root)}
    found = [one for run in runs for folder in workspace.folders(run) if (one := lineage.read(folder))]
    roots = [one for one in found if _kept(one, planned, unclear) or one.path.resolve() in places]
    return Known(planned, frozenset(unclear), frozenset(places), frozenset(wanted | _reached(roots, found)))


def _named(chosen: Recipe, root: Path) -> Iterator[Path]:
    """Every place that a recipe's values may name, where it is run in `root`."""
    for text in _texts(chosen.model_dump(mode="json")):
        try:
            path = (root / Path(text).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError):
            continue
        yield from (path, *path.parents[:2])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_texts, value))


def _kept(one: Artifact, planned: Mapping[str, Sequence[Planned]], unclear: Iterable[str]) -> bool:
    run = one.path.parent.name
    return run in unclear or run not in planned or one.path.name in {node.node.name for node in planned[run]}


def _reached(roots: Iterable[Artifact], found: Sequence[Artifact]) -> set[str]:
    """The fingerprints of `roots` and of all that they were made of."""
    known: dict[str, list[Artifact]] = {}
    for one in found:
        known.setdefault(one.fingerprint, []).append(one)
    waiting, reached = [one.fingerprint for one in roots], set[str]()
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint not in reached:
            reached.add(fingerprint)
            waiting += [given for one in known.get(fingerprint, ()) for given in one.manifest.inputs.values()]
    return reached


def of_run(run: Path, known: Known, *, now: float) -> Iterator[Leftover]:
    """What one run's folder can do without."""
    yield from _staged(run, known, now)
    yield from _retired(run)
    for folder in workspace.folders(run):
        found = None if folder.name.startswith(".") else lineage.read(folder)
        # An option of the command line may have asked for it, which no recipe tells: `quantize --bits 4`.
        if found and _superseded(found, known) and _idle(folder, now) > _IDLE["artifact"]:
            yield Leftover(folder, "no recipe here makes it any more, and nothing refers to it")


def resumable(run: Path, known: Known, *, now: float) -> list[Path]:
    """What a killed run left and the next one may go on from."""
    return [path for path, _ in _staging(run) if _goes_on(path, run, known, now)]


def _staged(run: Path, known: Known, now: float) -> Iterator[Leftover]:
    for path, node in _staging(run):
        if not _goes_on(path, run, known, now):
            yield Leftover(path, f"what a {node} that was killed or changed has left")


def _staging(run: Path) -> Iterator[tuple[Path, str]]:
    for path in workspace.folders(run / ".staging") if not (run / ".staging").is_symlink() else []:
        if named := _STAGED.fullmatch(path.name):
            yield path, named["node"]


def _goes_on(path: Path, run: Path, known: Known, now: float) -> bool:
    verb = path.name.partition("-")[0]
    if verb not in _RESUMABLE:
        return False
    if _idle(path, now) <= _IDLE["artifact"]:  # a run with other options may, such as `eval --max-drop`
        return True
    if run.name in known.unclear or run.name not in known.planned:
        return True
    going = {f"{one.node.name}-{one.fingerprint[:16]}" for one in known.planned[run.name] if not one.fresh}
    return path.name in going


def _retired(folder: Path) -> Iterator[Leftover]:
    for path in workspace.folders(folder):
        named = _RETIRED.fullmatch(path.name)
        if named and (folder / named["name"] / artifact.MANIFEST).is_file():  # else it is the last good one, to be brought back
            yield Leftover(path, f"an old {named['name']} that a new one has replaced")


def _superseded(found: Artifact, known: Known) -> bool:
    run, place = found.path.parent.name, found.path.resolve()
    if found.fingerprint in known.fingerprints or place in known.places:
        return False
    if run not in known.planned or run in known.unclear:
        return False
    named = {one.node.name for one in known.planned[run]}
    return found.path.name not in named and _only_ours(found)


def _only_ours(found: Artifact) -> bool:
    """Whether a folder holds what its manifest lists and no link or file of anyone else's."""
    listed = {*found.manifest.files, artifact.MANIFEST}
    for root, folders, names in os.walk(found.path):
        paths = [Path(root, name) for name in (*folders, *names)]
        if any(path.is_symlink() for path in paths):
            return False
        if any(Path(root, name).relative_to(found.path).as_posix() not in listed for name in names):
            return False
    return True


def of_cache(known: Known, *, now: float) -> Iterator[Leftover]:
    """What the shared cache can do without: parts that were not used for a week, answers not for a month."""
    root = origin.cache_folder()
    for part in ("demo", "gguf"):
        if (root / part).is_symlink():
            continue
        yield from _retired(root / part)
        for folder in workspace.folders(root / part):
            building = _BUILDING.fullmatch(folder.name)
            if building and not _runs(int(building["process"])) and _idle(folder, now) > _STILL_BUILDING:
                yield Leftover(folder, "what a killed llmkit was unpacking")
            elif not building and (why := _unused(folder, part, known)) and _idle(folder, now) > _IDLE["artifact"]:
                yield Leftover(folder, why)
    for path in _files(root / "answers", _ANSWERS):
        if _idle(path, now) > _IDLE["answers"]:
            yield Leftover(path, "answers of an evaluation, not asked for since a month or more")


def _unused(folder: Path, part: str, known: Known) -> str:
    found = lineage.read(folder)
    if found is None or found.manifest.step != part or found.fingerprint in known.fingerprints or not _only_ours(found):
        return ""
    if part == "gguf":
        return "a GGUF file unpacked, not used for a week or more; unpacked again when it is needed"
    current = _demos(found.path.name.rpartition("-")[0])
    return "" if found.fingerprint in current else "a demo as another version of llmkit unpacked it"


def _demos(name: str) -> set[str]:
    """The fingerprints that a demo's builds have today."""
    languages = sorted(origin.CHATTERBOT_SHA256)
    if name == "chatterbot":
        some = chain.from_iterable(combinations(languages, count) for count in range(1, len(languages) + 1))
        return {origin.source("demo:chatterbot", languages=chosen).fingerprint for chosen in some}
    try:
        return {origin.model(f"demo:{name}").fingerprint}
    except LlmkitError:
        return set()


def logs(*, now: float) -> Iterator[Leftover]:
    """Tracebacks of our own that no one has sent, a day old."""
    for path in _files(Path(tempfile.gettempdir()), _LOG):
        status = path.lstat()
        if status.st_uid == os.getuid() and now - status.st_mtime > _IDLE["log"] and _is_traceback(path):
            yield Leftover(path, "the traceback of a bug of llmkit, a day old or more")


def _is_traceback(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return b"Traceback (most recent call last)" in stream.read(4096)
    except OSError:
        return False


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [one.name for one in entries if pattern.fullmatch(one.name) and one.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return [] if folder.is_symlink() else [folder / name for name in sorted(names)]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _idle(path: Path, now: float) -> float:
    """Seconds since anything in it was written or read; its manifest is no sign, for every look at the cache reads it."""
    files = (
        [path] if not path.is_dir() else [one for one in islice(path.rglob("*"), _MOST_FILES) if one.name != artifact.MANIFEST]
    )
    found = [status for status in map(_status, files) if status and not stat.S_ISDIR(status.st_mode)]  # a look reads folders
    stamps = [max(status.st_atime, status.st_mtime) for status in found]
    return now - max(stamps, default=path.lstat().st_mtime)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # gone since
        return None


def freed(leftovers: Sequence[Leftover]) -> list[int]:
    """Bytes on disk that deleting all of `leftovers` gives back, by leftover.

    A file with several names counts once, at the first of them, and not at all where one of its names stays.
    """
    names: dict[tuple[int, int], int] = {}
    found: list[list[os.stat_result]] = []
    for one in leftovers:
        below = [Path(root, name) for root, folders, files in os.walk(one.path) for name in (*folders, *files)]
        found.append([status for path in (one.path, *below) if (status := _status(path))])
        for status in found[-1]:
            names[status.st_dev, status.st_ino] = names.get((status.st_dev, status.st_ino), 0) + 1
    return [sum(_bytes(status, names) for status in statuses) for statuses in found]


def _bytes(status: os.stat_result, names: dict[tuple[int, int], int]) -> int:
    key = (status.st_dev, status.st_ino)
    folder = stat.S_ISDIR(status.st_mode)  # whose links are its subfolders
    whole = key in names and (folder or status.st_nlink <= names[key])
    names.pop(key, None)
    return status.st_blocks * 512 if whole else 0


def all_of(place: Path, runs: Sequence[Path]) -> tuple[list[Leftover], list[Path]]:
    """Everything that can go, and what only seems so: a killed run's work that the next one goes on from."""
    now = time.time()
    known = know(place, workspace.runs(place))
    mine = chain.from_iterable(of_run(run, known, now=now) for run in runs)
    alone = [
        Leftover(path, f"what a step alone that was killed has left of {name}, a week old or more")
        for path, name in _staging(place)
        if _idle(path, now) > _IDLE["artifact"]
    ]
    return [*mine, *alone, *of_cache(known, now=now), *logs(now=now)], [
        path for run in runs for path in resumable(run, known, now=now)
    ]
