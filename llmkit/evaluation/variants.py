"""What there is to measure: a model's folders, GGUF files with or without a LoRA, an endpoint. Knows files; loads nothing.

A variant is known by the bytes that lie on the disk, not by what its manifest says they were: what is measured is what is
shipped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit import artifact
from llmkit.artifact import Artifact, Kind
from llmkit.endpoint import Endpoint
from llmkit.errors import DataError
from llmkit.evaluation import settings

# Roles of an evaluation's inputs that are no model in a folder.
_OTHERS = ("dataset", "gguf", "file", "adapter", "pairs", "baseline", "problems")


@dataclass(frozen=True)
class Folder:
    """A Hugging Face or bitsandbytes folder. `changed`: its files are not those that were published."""

    name: str
    path: Path
    size_bytes: int
    fingerprint: str
    changed: bool = False


@dataclass(frozen=True)
class Gguf:
    """What llama.cpp is given: a model's file, or the first of its parts, and the LoRA over it.

    `head`: the Hugging Face folder that names its architecture, None where there is none; `tuned`: the LoRA as PEFT wrote it.
    """

    name: str
    path: Path
    size_bytes: int
    fingerprint: str
    head: Path | None
    adapter: Path | None = None
    tuned: Path | None = None
    changed: bool = False


@dataclass(frozen=True)
class Remote:
    """A model behind an OpenAI-compatible endpoint; nobody knows its bytes."""

    name: str
    endpoint: Endpoint

    @property
    def fingerprint(self) -> str:
        return artifact.digest("endpoint", self.endpoint.url, self.endpoint.model)


Variant = Folder | Gguf | Remote


def row_name(name: str) -> str:
    """What a model of the user's own is called beside the one it is compared with: nothing that means something else here."""
    plain = re.sub(r"[^\w-]", "-", name)
    return f"input-{plain}" if plain in ("", "base", "merged", *_OTHERS) else plain


def find(inputs: Mapping[str, Artifact], *, cache: Path) -> Iterator[Folder | Gguf]:
    """The models among an evaluation's inputs: base, merged, the bitsandbytes folders, then each GGUF file, largest first.

    Hashes every file of them; `cache` is where the hashes of unchanged files are remembered.
    """
    quantized = [role for role in inputs if role not in ("base", "merged", *_OTHERS) and "." not in role]
    for role in ("base", "merged", *quantized):
        if role in inputs:
            yield _folder(role, inputs[role], cache)
    if "gguf" in inputs:
        yield from sorted(_exported(inputs, cache), key=lambda one: -one.size_bytes)
    if "file" in inputs:
        found = inputs["file"]
        head = inputs["base"].path if "base" in inputs else None
        yield Gguf(row_name(found.path.stem), found.path, found.size_bytes, found.fingerprint, head)


def remote(given: settings.Endpoint) -> Remote:
    """The endpoint's row.

    Raises:
        UsageError: a URL that is none.
    """
    return Remote(
        given.name,
        Endpoint(given.url, given.model, given.key_env, timeout=given.timeout, retries=given.retries, parallel=given.parallel),
    )


def _folder(name: str, given: Artifact, cache: Path) -> Folder:
    here = artifact.foreign(given.path, Kind.MODEL, cache_folder=cache)
    return Folder(name, given.path, here.size_bytes, here.fingerprint, _differ(given, here, given.manifest.files))


def _exported(inputs: Mapping[str, Artifact], cache: Path) -> Iterator[Gguf]:
    """By type; the base under its adapter as TYPE+lora."""
    given = inputs["gguf"]
    here = artifact.foreign(given.path, Kind.GGUF, cache_folder=cache)
    head = inputs.get("merged", inputs["base"]).path
    for kind, facts in given.facts["types"].items():
        names = facts["files"]
        yield Gguf(
            kind, given.path / names[0], facts["bytes"], _content(here, names), head, changed=_differ(given, here, names)
        )
    lora = given.facts.get("adapter")
    if lora:
        base, names = lora["base"], [*lora["base"]["files"], lora["file"]]
        content = _content(here, names)
        yield Gguf(
            f"{base['type']}+lora",
            given.path / names[0],
            base["bytes"] + (given.path / lora["file"]).stat().st_size,
            content,
            inputs["base"].path,
            given.path / lora["file"],
            inputs["adapter"].path,
            _differ(given, here, names),
        )


def _content(here: Artifact, names: Sequence[str]) -> str:
    missing = [name for name in names if name not in here.manifest.files]
    if missing:
        raise DataError(
            "an exported file is gone", code="LK0114", where=str(here.path / missing[0]), next="export again, with --force"
        )
    return artifact.digest("gguf", [here.manifest.files[name]["sha256"] for name in names])


def _differ(given: Artifact, here: Artifact, names: Mapping[str, object] | Sequence[str]) -> bool:
    return any(given.manifest.files[name]["sha256"] != here.manifest.files.get(name, {}).get("sha256") for name in names)
