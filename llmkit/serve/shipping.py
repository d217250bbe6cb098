"""Which of a run's artifacts is the one to talk to: what its evaluation advises, else what is left. Knows manifests.

An evaluation counts only while its models are those that lie there now.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit import artifact
from llmkit.artifact import Artifact, Kind
from llmkit.report import recommend, table, values
from llmkit.serve.found import Found, refuse


def best_row(run: Path) -> Found | None:
    """What the recipe run in `run` would ship; None where it holds nothing that can speak."""
    rows = {one.name.rpartition("/")[2]: one for one in _rows(run)}
    advised = _advised(run)
    if advised in rows:
        return rows[advised]
    exported = artifact.load(run / "export")
    if exported and exported.manifest.kind is Kind.GGUF:
        return best_file(exported, named=run.name)
    return next(iter(rows.values()), None)


def best_file(exported: Artifact, *, named: str) -> Found:
    """Of an export's files the smallest that kept the fine-tune; where none did, the LoRA over its base, then the nearest.

    Raises:
        UsageError: it lists no file that is there.
    """
    files = {one.name.rpartition("/")[2]: one for one in files_of(exported, named=named)}
    kinds = {kind: facts for kind, facts in values.part(exported.facts, "types").items() if kind in files}
    kept = [kind for kind in kinds if not table.lost_fine_tune(kind, kinds[kind])]
    if kept:
        return files[min(kept, key=lambda kind: values.finite(kinds[kind].get("bytes")) or 0.0)]
    loras = [kind for kind in files if kind not in kinds]
    if loras:
        return files[loras[0]]
    if not kinds:
        raise refuse("this export holds no GGUF file any more", exported.path, next="run export again")
    return files[max(kinds, key=lambda kind: values.finite(kinds[kind].get("retention")) or 0.0)]


def _rows(run: Path) -> Iterator[Found]:
    """Everything in a run that can speak and needs no base, the likeliest first; an adapter is merged by the next step."""
    folders = [run / "merge", *sorted(run.glob("quantize-*"))]
    for found in filter(None, map(artifact.load, folders)):
        if found.manifest.kind in (Kind.MODEL, Kind.QUANTIZED):
            row = "merged" if found.path.name == "merge" else found.path.name.removeprefix("quantize-")
            kind: Any = found.manifest.kind.value
            yield Found(f"{run.name}/{row}", kind, found.path)
    exported = artifact.load(run / "export")
    if exported and exported.manifest.kind is Kind.GGUF:
        yield from files_of(exported, named=run.name)


def files_of(exported: Artifact, *, named: str) -> Iterator[Found]:
    """An export's rows whose files are there: each type, then TYPE+lora, the LoRA over its base."""
    for kind, facts in values.part(exported.facts, "types").items():
        if path := _first(exported, facts):
            yield Found(f"{named}/{kind}", "gguf", path)
    adapter = values.part(exported.facts, "adapter")
    base = values.part(adapter, "base")
    path, lora = _first(exported, base), _member(exported, adapter.get("file"))
    if path and lora:
        yield Found(f"{named}/{base.get('type')}+lora", "gguf", path, lora=lora)


def _first(exported: Artifact, facts: Any) -> Path | None:
    names = facts.get("files") if isinstance(facts, Mapping) else None
    return _member(exported, names[0]) if isinstance(names, list) and names else None


def _member(exported: Artifact, name: object) -> Path | None:
    listed = isinstance(name, str) and name in exported.manifest.files
    return exported.path / str(name) if listed and (exported.path / str(name)).is_file() else None


def _advised(run: Path) -> str | None:
    """The row that a run's evaluation says to ship, if it is of the models that are there."""
    measured = artifact.load(run / "eval")
    if measured is None or measured.manifest.kind is not Kind.REPORT:
        return None
    for role, fingerprint in measured.manifest.inputs.items():
        folder = {"merged": "merge", "gguf": "export", "adapter": "finetune"}.get(role, f"quantize-{role}")
        there = artifact.load(run / folder)
        if there is not None and there.fingerprint != fingerprint:
            return None
    try:
        report = json.loads((measured.path / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return recommend.choose(report).name if isinstance(report, dict) else None
