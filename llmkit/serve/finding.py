"""Finds what a reference names that can speak: a file, a folder of any kind, a run, a demo or a hub's model.

Knows folders and manifests; loads nothing, and fetches a model only where the reference itself names it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit import artifact, origin, progress
from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError, UsageError
from llmkit.origin import Origin
from llmkit.report import values
from llmkit.serve import shipping
from llmkit.serve.found import SPEAKING, Found, refuse

_DEMOS = ("demo:gemma-3-270m", "demo:smollm2-135m")
_SILENT = {
    Kind.DATASET: "a dataset has nothing to say",
    Kind.SOURCE: "a data source has nothing to say",
    Kind.REPORT: "a report has nothing to say",
}


def find(reference: str, *, base: str | None = None) -> Found:
    """What `reference` names: see `found.SPEAKING`. `base`: an adapter's base, as a recipe would name it.

    Raises:
        UsageError: nothing that can speak, an adapter whose base is not known, or a base for what needs none.
        DataError: a folder that is broken.
        MachineError: a model that has to be fetched, and cannot be.
    """
    try:
        path = Path(reference).expanduser()
        there = path.exists()
    except (RuntimeError, OSError, ValueError):
        raise refuse("this names no place", reference) from None
    if not reference:
        raise refuse("an empty name", "the model")
    if not there:
        found = replace(_folder(_fetched(reference), base), name=reference)
    elif path.is_file():
        found = _file(path, base)
    else:
        found = _folder(path, base)
    if base and found.kind != "adapter" and found.lora is None:
        raise UsageError(f"this is a {found.kind}, and needs no base", code="LK0803", where=reference, next="leave --base out")
    return found


def latest(workspace: Path) -> Found:
    """What the last recipe run in this workspace would ship.

    Raises:
        UsageError: no run holds anything that can speak.
    """
    for run in _runs(workspace):
        if (found := shipping.best_row(run)) is not None:
            return found
    raise refuse(
        "no recipe was run here yet",
        workspace,
        next="run one (llmkit run quickstart), or name a model: a folder, a .gguf file, demo:smollm2-135m",
    )


def _runs(workspace: Path) -> list[Path]:
    """The workspace's runs: the one that last.json names, then by the time of their newest artifact."""
    try:
        last = json.loads((workspace / "last.json").read_text("utf-8"))
        named = Path(str(last["recipe"])).stem
    except (OSError, ValueError, KeyError, TypeError):
        named = ""
    times = {
        run: max((made.stat().st_mtime for made in run.glob(f"*/{artifact.MANIFEST}")), default=0.0)
        for run in workspace.glob("*")
        if run.is_dir()
    }
    return sorted((run for run, time in times.items() if time), key=lambda run: (run.name != named, -times[run]))


def _fetched(reference: str) -> Path:
    """The folder of a model that is named as recipes name it."""
    if reference.lower().endswith(".gguf") or reference.startswith((".", "/", "~")):
        raise refuse("no such file or folder", reference)
    try:
        given = origin.model(reference)
    except UsageError as error:
        raise refuse(error.what, reference, next=error.next or SPEAKING) from None
    return (given.ready or given.fetch()).path


def _file(path: Path, base: str | None) -> Found:
    if path.suffix.lower() != ".gguf":
        raise refuse("this file is no model", path, next="name a .gguf file, or the folder that a model lies in")
    if not _is_lora(path):
        return Found(path.stem, "gguf", path)
    if base:
        under = find(base)
        if under.kind != "gguf" or under.lora:
            raise UsageError("a GGUF LoRA lies over a GGUF file", code="LK0803", where=base, next="give --base a .gguf file")
        return Found(path.stem, "gguf", under.path, lora=path)
    beside = artifact.load(path.parent)
    if beside and values.part(beside.facts, "adapter").get("file") == path.name:
        for found in shipping.files_of(beside, named=_run_name(path.parent)):
            if found.lora:
                return found
    raise UsageError(
        "this GGUF file is a LoRA, and its base is not beside it", code="LK0803", where=str(path), next="say --base FILE.gguf"
    )


def _is_lora(path: Path) -> bool:
    from llmkit.gguf import container

    return container.open_file(path).metadata.get("general.type") == "adapter"


def _folder(path: Path, base: str | None) -> Found:
    made = artifact.load(path)
    if made and made.manifest.kind in _SILENT:
        raise refuse(_SILENT[made.manifest.kind], path)
    if (path / "adapter_config.json").is_file():
        return Found(_name(path), "adapter", path, base=_base(path, made, base))
    if (path / "config.json").is_file():
        quantized = isinstance(_json(path / "config.json").get("quantization_config"), dict)
        return Found(_name(path), "quantized" if quantized else "model", path)
    if made and made.manifest.kind is Kind.GGUF:
        return shipping.best_file(made, named=_run_name(path))
    files = sorted(one for one in path.glob("*.gguf") if one.is_file())
    whole = [one for one in files if not _later_part(one)]
    if len(whole) == 1:
        return Found(whole[0].stem, "gguf", whole[0])
    if whole:
        raise refuse(f"{len(whole)} GGUF models lie here", path, next=f"name one of them, such as {whole[0]}")
    if (path / "last.json").is_file():
        return latest(path)
    found = shipping.best_row(path) or _tuned(path, base)
    if found is None:
        raise refuse("nothing here can speak", path)
    return found


def _tuned(run: Path, base: str | None) -> Found | None:
    """A run's fine-tune, where it was not merged."""
    return _folder(run / "finetune", base) if artifact.load(run / "finetune") else None


def _later_part(path: Path) -> bool:
    stem, of, _ = path.stem.rpartition("-of-")
    return bool(of) and stem[-5:].isdigit() and int(stem[-5:]) > 1


def _name(folder: Path) -> str:
    """A run's name and the step's; any other folder's own."""
    own = folder.resolve().name
    return own if (run := _run_name(folder)) == own else f"{run}/{own}"


def _run_name(folder: Path) -> str:
    """That of the run that a step's folder is part of; of any other folder its own."""
    place = folder.resolve()
    is_step = artifact.load(folder) is not None and (place.parent / ".lock").exists()
    return place.parent.name if is_step else place.name


def _base(adapter: Path, made: Artifact | None, given: str | None) -> Path:
    """The folder of an adapter's base: the one that is named, or the one that the adapter says it was trained on."""
    wanted = made.manifest.inputs.get("base") if made else None
    if given:
        chosen = origin.model(given)
        if wanted and chosen.fingerprint != wanted:
            progress.note(f"warning: {given} is not the model that this adapter was trained on")
        return (chosen.ready or chosen.fetch()).path
    recorded = str(_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    for name in dict.fromkeys((recorded, *(_DEMOS if wanted else ()))):
        chosen_or_none = _known(name)
        if chosen_or_none and wanted in (None, chosen_or_none.fingerprint):
            return (chosen_or_none.ready or chosen_or_none.fetch()).path
    said = f", {recorded[:200]}," if recorded else ""
    raise UsageError(
        f"the model that this adapter was trained on{said} is not on this disk as it was then",
        code="LK0803",
        where=str(adapter),
        next="say --base MODEL: a folder, OWNER/NAME on the hub, demo:NAME",
    )


def _known(name: str) -> Origin | None:
    """A model that is here, or a demo; a stranger's adapter does not make us fetch anything."""
    try:
        found = origin.model(name) if name else None
    except UsageError:
        return None
    return found if found and (found.ready or name.startswith("demo:")) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read: {error}"[:300], code="LK0802", where=str(path.parent)) from None
    return found if isinstance(found, dict) else {}
