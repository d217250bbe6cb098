"""Artifacts: folders whose manifest, written last, says what they are. Knows files and hashes; nothing of steps or models.

A published artifact is whole: its files are written and hashed in a staging folder, the manifest is written last, and
the folder is renamed into place. What a killed run leaves is a staging folder, never half an artifact.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, UsageError

MANIFEST = "manifest.json"
SCHEMA = 1
Facts = dict[str, Any]


class Kind(StrEnum):
    SOURCE = "source"
    DATASET = "dataset"
    MODEL = "model"
    ADAPTER = "adapter"
    QUANTIZED = "quantized"
    GGUF = "gguf"
    REPORT = "report"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. `inputs`: role → fingerprint; `files`: path → {"sha256", "size"} (bytes)."""

    kind: Kind
    step: str
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class Artifact:
    """A read-only folder (or, for what llmkit did not make, a folder or file) and what is known of it."""

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.manifest.facts

    @property
    def size_bytes(self) -> int:
        return sum(int(entry["size"]) for entry in self.manifest.files.values())


def canonical_json(value: object) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(*parts: object) -> str:
    """SHA-256 (hex) over the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON so that `path` holds either the old text or the new, whatever happens."""
    # Two processes may write the same file of the shared cache.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def files_in(folder: Path) -> Iterator[Path]:
    """Every file below `folder` but its manifest, in a stable order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            yield path


def load(folder: Path) -> Artifact | None:
    """The artifact in `folder`, or None where there is none (or none that this version can read)."""
    try:
        raw = json.loads((folder / MANIFEST).read_text("utf-8"), parse_constant=_finite, parse_float=_finite)
        if raw.get("schema") != SCHEMA:
            return None
        manifest = Manifest(**{**raw, "kind": Kind(raw["kind"])})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return Artifact(folder, manifest) if _is_whole(manifest) else None


def _finite(text: str) -> float:
    """As `write_json` writes them; raises ValueError for NaN, Infinity or 1e999."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number")
    return number


def _is_whole(manifest: Manifest) -> bool:
    """Whether a manifest, which anyone may have written, holds what one holds."""
    mappings = (manifest.config, manifest.inputs, manifest.files, manifest.facts, manifest.versions)
    return (
        all(isinstance(one, Mapping) for one in mappings)
        and all(isinstance(one, str) for one in (manifest.step, manifest.fingerprint, *manifest.inputs.values()))
        and all(_is_entry(one) for one in manifest.files.values())
    )


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("sha256"), str) and type(entry.get("size")) is int


def expect(folder: Path, *kinds: Kind) -> Artifact:
    """The artifact in `folder`, which must be one of `kinds`.

    Raises:
        UsageError: there is none, or it is another kind.
    """
    wanted = "artifact" if set(kinds) == set(Kind) else f"{' or '.join(kinds)} artifact"
    found = load(folder)
    if found is None:
        raise UsageError(
            f"no {wanted} here",
            code="LK0112",
            where=str(folder),
            next="name a folder that llmkit wrote (it holds manifest.json)",
        )
    if found.manifest.kind not in kinds:
        raise UsageError(
            f"this is a {found.manifest.kind} artifact, not a {' or '.join(kinds)}", code="LK0112", where=str(folder)
        )
    return found


def changed_since(found: Artifact) -> bool:
    """Whether a file is not what it was when its artifact was published; hashes only what was written after the manifest."""
    published = (found.path / MANIFEST).stat().st_mtime_ns
    for name, entry in found.manifest.files.items():
        path = found.path / name
        if not path.is_file() or (path.stat().st_mtime_ns > published and sha256_file(path) != entry["sha256"]):
            return True
    return False


def publish(staging: Path, final: Path, manifest: Manifest) -> Artifact:
    """Hash what `staging` holds, write its manifest, and move the folder to `final`, whose old artifact it replaces."""
    for leftover in (staging / MANIFEST, *staging.glob(f"{MANIFEST}.*.tmp")):
        leftover.unlink(missing_ok=True)
    files = {
        path.relative_to(staging).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in files_in(staging)
    }
    whole = Manifest(**{**_fields(manifest), "files": files, "versions": _versions()})
    write_json(staging / MANIFEST, asdict(whole))
    final.parent.mkdir(parents=True, exist_ok=True)
    retired = final.with_name(f".{final.name}.old")
    recover(final)
    if final.exists():
        final.replace(retired)
    staging.replace(final)
    shutil.rmtree(retired, ignore_errors=True)
    return Artifact(final, whole)


def recover(final: Path) -> None:
    """Finish what a kill between `publish`'s two renames left: bring the old artifact back, or drop it."""
    retired = final.with_name(f".{final.name}.old")
    if retired.exists():
        if final.exists():
            shutil.rmtree(retired)
        else:
            retired.replace(final)


def verify(artifact: Artifact) -> list[str]:
    """What no longer matches the manifest: one line for each missing, changed or unknown file."""
    found = {path.relative_to(artifact.path).as_posix(): path for path in files_in(artifact.path)}
    listed = artifact.manifest.files
    problems = [f"missing: {name}" for name in listed if name not in found]
    problems += [f"not in the manifest: {name}" for name in found if name not in listed]
    problems += [
        f"changed: {name}" for name, entry in listed.items() if name in found and sha256_file(found[name]) != entry["sha256"]
    ]
    return problems


def foreign(
    path: Path, kind: Kind, *, cache_folder: Path | None = None, members: Sequence[Path] | None = None, origin: str = ""
) -> Artifact:
    """Wrap a file or folder that llmkit did not make; its fingerprint is its content.

    Args:
        path: the file or folder.
        kind: what it is to be taken for.
        cache_folder: where hashes of unchanged files are remembered; None remembers nothing.
        members: only these files of the folder.
        origin: how a recipe names it, where that is more than a place on this disk.

    Raises:
        DataError: `path` does not exist or holds no file.
    """
    if not path.exists():
        raise DataError(
            f"no such {'file or folder' if kind is Kind.SOURCE else f'{kind} folder'}", code="LK0113", where=str(path)
        )
    if members is None:
        members = [path] if path.is_file() else [member for member in files_in(path) if not _hidden(member, path)]
    if not members:
        raise DataError("the folder is empty", code="LK0113", where=str(path))
    known = _HashCache(cache_folder)
    files = {
        (member.name if member == path else member.relative_to(path).as_posix()): {
            "sha256": known.sha256(member),
            "size": member.stat().st_size,
        }
        for member in members
    }
    known.save()
    return Artifact(
        path, Manifest(kind, "foreign", digest("foreign", kind, files), {"origin": origin} if origin else {}, {}, files)
    )


class _HashCache:
    """SHA-256 by (path, size, mtime), so that a 20 GB model folder is hashed once and not at every plan."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / "hashes.json" if folder else None
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if self._file:
            try:
                loaded = json.loads(self._file.read_text("utf-8"))
                self._known = loaded if isinstance(loaded, dict) else {}
            except (FileNotFoundError, ValueError):
                pass

    def sha256(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(str(path.resolve()))
        if isinstance(known, list) and known[:3] == stamp:
            return str(known[3])
        fresh = sha256_file(path)
        self._known[str(path.resolve())] = [*stamp, fresh]
        self._changed = True
        return fresh

    def save(self) -> None:
        if self._file and self._changed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known)


def _hidden(member: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in member.relative_to(root).parts)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


@cache
def _versions() -> dict[str, str]:
    names = ["llmkit", "torch", "transformers", "trl", "peft", "bitsandbytes", "gguf", "libgguf", "xllamacpp"]
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
