"""Where an artifact comes from, as a tree of what it was made of. Knows manifests and fingerprints; nothing of steps.

Fingerprints are what a manifest says of itself, and names are a stranger's: an artifact that names itself as its own input, or
inputs without end, make a short tree all the same.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit import artifact
from llmkit.artifact import Artifact
from llmkit.report.gguf import visible

ABSENT = "not on this disk"
_MOST_NODES = 500
_DEEPEST = 30
_WIDEST = 60  # characters of a fact
_FACTS: Mapping[str, tuple[str, ...]] = {
    "clean": ("kept", "train", "valid", "test"),
    "pairs": ("paired", "pairs"),
    "finetune": ("objective", "method", "records", "steps", "valid_loss_after"),
    "merge": ("dtype", "changed_weights", "adapters"),
    "quantize": ("quant_type",),
    "export": ("types",),
    "eval": ("n_samples", "variants"),
    "demo": ("licence",),
}


@dataclass(frozen=True)
class Origin:
    """One artifact in a lineage. `path` None: not found; `inputs`: role → fingerprint; `label`: what a recipe calls it."""

    fingerprint: str
    path: Path | None = None
    kind: str = ""
    step: str = ""
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


def read(folder: Path) -> Artifact | None:
    """The artifact in `folder`; None where there is none, or it cannot be read."""
    try:
        return artifact.load(folder)
    except OSError:
        return None


def by_fingerprint(folders: Iterable[Path]) -> dict[str, Artifact]:
    """The artifacts in `folders`; of two with one fingerprint, the first."""
    known: dict[str, Artifact] = {}
    for folder in folders:
        if found := read(folder):
            known.setdefault(found.fingerprint, found)
    return known


def trace(root: Artifact, known: Mapping[str, Artifact], labels: Mapping[str, str]) -> dict[str, Origin]:
    """All that `root` was made of, by fingerprint, itself first.

    Args:
        root: an artifact.
        known: artifacts by fingerprint, to look inputs up in.
        labels: what fingerprints that are no artifact of ours stand for, such as a file of dialogues.
    """
    traced: dict[str, Origin] = {}
    waiting = [root.fingerprint]
    known = {**known, root.fingerprint: root}
    while waiting and len(traced) < _MOST_NODES:
        fingerprint = waiting.pop(0)
        if fingerprint not in traced:
            traced[fingerprint] = _origin(fingerprint, known.get(fingerprint), labels.get(fingerprint, ""))
            waiting += traced[fingerprint].inputs.values()
    return traced


def _origin(fingerprint: str, found: Artifact | None, label: str) -> Origin:
    if found is None:
        return Origin(fingerprint, label=label)
    manifest = found.manifest
    facts = {key: manifest.facts[key] for key in _FACTS.get(manifest.step, ()) if manifest.facts.get(key) is not None}
    named = str(manifest.config.get("origin") or label)
    return Origin(fingerprint, found.path, str(manifest.kind), manifest.step, named, facts, dict(manifest.inputs))


def data(traced: Mapping[str, Origin]) -> dict[str, Any]:
    """A lineage for JSON: fingerprint → what it is; `path` is null where it was not found."""
    return {
        one.fingerprint: {
            "path": None if one.path is None else str(one.path),
            "kind": one.kind,
            "step": one.step,
            "origin": one.label,
            "facts": dict(one.facts),
            "inputs": dict(one.inputs),
        }
        for one in traced.values()
    }


def render(root: str, traced: Mapping[str, Origin]) -> list[str]:
    """The inputs of the artifact `root` as lines of a tree; what stands in two places is drawn out once."""
    return list(_branches(root, traced, "", {root}, _DEEPEST))


def _branches(of: str, traced: Mapping[str, Origin], indent: str, drawn: set[str], depth: int) -> Iterator[str]:
    inputs = list(traced[of].inputs.items()) if of in traced and depth else []
    for number, (role, fingerprint) in enumerate(inputs, 1):
        last = number == len(inputs)
        told = _told(traced.get(fingerprint, Origin(fingerprint)), again=fingerprint in drawn)
        yield f"{indent}{'└─' if last else '├─'} {visible(role)}: {told}"
        if fingerprint not in drawn:
            drawn.add(fingerprint)
            yield from _branches(fingerprint, traced, indent + ("   " if last else "│  "), drawn, depth - 1)


def _told(one: Origin, *, again: bool) -> str:
    short = visible(one.fingerprint[:16])
    if one.path is None:
        return f"{visible(one.label) if one.label else ABSENT}, {short}"
    what = f"{one.kind} by {visible(one.step)}" + (f", {visible(one.label)}" if one.label else "")
    if again:
        return f"{what}, {short} (as above)"
    facts = ", ".join(f"{key} {_value(value)}" for key, value in one.facts.items())
    return f"{what}{f' ({facts})' if facts else ''}, {short}, {visible(near(one.path))}"


def near(path: Path) -> str:
    """A path as one would type it here."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        text = " ".join(f"{name} {one}" if isinstance(one, int) else str(name) for name, one in value.items())
    elif isinstance(value, list | tuple):
        text = " ".join(map(str, value))
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return visible(text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…")
