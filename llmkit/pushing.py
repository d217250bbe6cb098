"""What of an artifact goes to a hub, and what stays here. Knows artifacts and cards; sends nothing.

What is pushed is what was measured: every file's hash is compared first, and the card's numbers are those of an evaluation of
just these files. It tells nothing of this machine: files that quote training data stay here, the manifest's absolute paths are
cut to their last part, and a file that names a folder of this machine is refused.
"""

import hashlib
import json
import mmap
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmkit import artifact, origin
from llmkit.artifact import MANIFEST, Artifact, Kind
from llmkit.errors import DataError, FidelityError, UsageError
from llmkit.release import licence_of
from llmkit.report.hub_card import HubCard, Measured, render

CARD = "README.md"
# Raw dialogues, or pages and samples that show some: whoever publishes a model does not publish what it learnt from.
QUOTES = frozenset({"report.html", "samples.jsonl", "rejected.jsonl", "quarantined.jsonl", "review.html", "log.jsonl"})
_QUOTES_OF_DATASETS = frozenset({"report.json"})
_PUSHED = (Kind.ADAPTER, Kind.MODEL, Kind.QUANTIZED, Kind.GGUF, Kind.DATASET)
_HEADER = 1 << 20  # bytes: where GGUF and safetensors files say what they are; the rest is numbers
_TRAINED = ("objective", "method", "records", "steps", "train_loss", "valid_loss_before", "valid_loss_after")
_CLEANED = ("read", "kept", "train", "valid", "test")
_ABSOLUTE = re.compile(r"(?:~|[A-Za-z]:)?[\\/][^\s\\/]+[\\/].*|~[\\/].*")


@dataclass(frozen=True)
class Known:
    """What is known beside the artifact.

    `related`: artifacts that it may come from, and reports that may have measured it, the newest first; `command`: what made
    it; `datasets`: OWNER/NAME of the hub's data that it learnt from.
    """

    related: Sequence[Artifact] = ()
    command: str | None = None
    datasets: Sequence[str] = ()


@dataclass(frozen=True)
class Pack:
    """What would be sent. `files`: name → a file here, or bytes; `kept`: name → why it stays here."""

    repo_type: str
    files: Mapping[str, Path | bytes]
    kept: Mapping[str, str]
    card: str
    licence: str | None
    base: str | None


def pack(found: Artifact, repo: str, known: Known) -> Pack:
    """All that goes to `repo` (OWNER/NAME).

    Raises:
        UsageError: a kind that is not pushed.
        FidelityError: a file is not what was published.
        DataError: a file that names a folder of this machine.
    """
    manifest = found.manifest
    if manifest.kind not in _PUSHED:
        raise UsageError(
            f"a {manifest.kind} is not pushed",
            code="LK0365",
            where=str(found.path),
            next="push the model that it measured: the card takes its numbers over" if manifest.kind is Kind.REPORT else "",
        )
    kept = _kept(found)
    _verify(found)
    names = [name for name in manifest.files if name not in kept]
    needles = _needles(found)
    for name in names:
        _check_private(found.path / name, needles)
    info = _card(found, repo, known, names)
    card = _tidy(render(info), needles)
    files: dict[str, Path | bytes] = {name: found.path / name for name in names}
    files[CARD] = card.encode()
    files[MANIFEST] = _manifest(found, files, needles)
    repo_type = "dataset" if manifest.kind is Kind.DATASET else "model"
    return Pack(repo_type, files, kept, card, info.licence, info.base)


def _kept(found: Artifact) -> dict[str, str]:
    is_data = found.manifest.kind is Kind.DATASET
    quoting = QUOTES | (_QUOTES_OF_DATASETS if is_data else frozenset())
    kept = {name: "quotes the data" for name in found.manifest.files if name.rpartition("/")[2] in quoting}
    here = (one.relative_to(found.path).as_posix() for one in artifact.files_in(found.path))
    return kept | {name: "not in the manifest" for name in here if name not in found.manifest.files}


def _verify(found: Artifact) -> None:
    problems = [one for one in artifact.verify(found) if not one.startswith("not in the manifest")]
    if problems:
        raise FidelityError(
            f"not what was published and measured: {'; '.join(problems)}",
            code="LK0364",
            where=str(found.path),
            next="run the recipe again with --force, or restore the files",
        )


def _needles(found: Artifact) -> list[str]:
    """Folders whose names would tell who and where this was: the user's home, the workspace, the temporary folder."""
    places = {Path.home(), found.path.resolve().parent.parent, Path.cwd(), Path(tempfile.gettempdir()).resolve()}
    return sorted({f"{place}/" for place in places if len(place.parts) > 1}, key=len, reverse=True)


def _check_private(path: Path, needles: Iterable[str]) -> None:
    """Dialogues may speak of any folder; of them, only where a record says it comes from counts."""
    if not path.stat().st_size:
        return
    before = '"source":"' if path.suffix == ".jsonl" else ""
    length = min(path.stat().st_size, _HEADER) if path.suffix in (".safetensors", ".gguf") else 0
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ) as text:
        for needle in needles:
            if text.find(f"{before}{needle}".encode()) >= 0:
                raise DataError(
                    f"it names a folder of this machine: {needle}",
                    code="LK0363",
                    where=str(path),
                    next="name the input by a relative path in the recipe, and run it again",
                )


def _manifest(found: Artifact, files: Mapping[str, Path | bytes], needles: Sequence[str]) -> bytes:
    """The manifest of what is sent: its files alone, the new card's hash, no path of this machine."""
    listed = {name: entry for name, entry in found.manifest.files.items() if name in files and name != CARD}
    card = files[CARD]
    assert isinstance(card, bytes)
    listed[CARD] = {"sha256": hashlib.sha256(card).hexdigest(), "size": len(card)}
    told = replace(found.manifest, files=dict(sorted(listed.items())))
    text = json.dumps(_anonymous(asdict(told), needles), ensure_ascii=False, indent=2, allow_nan=False)
    return f"{text}\n".encode()


def _anonymous(value: Any, needles: Sequence[str]) -> Any:
    """The same without folders: an absolute path becomes its last part."""
    if isinstance(value, Mapping):
        return {key: _anonymous(one, needles) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_anonymous(one, needles) for one in value]
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.fullmatch(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _tidy(value, needles)


def _tidy(text: str, needles: Sequence[str]) -> str:
    for needle in needles:
        text = text.replace(needle, "")
    return text


def _card(found: Artifact, repo: str, known: Known, names: Sequence[str]) -> HubCard:
    family = {one.fingerprint: one for one in known.related}
    line = list(_ancestors(found, family))
    is_data = found.manifest.kind is Kind.DATASET
    base = next((one for role, _, one in line if role == "base" and one), None) or _root(line)
    trained = next((one for one in [found, *(one for _, _, one in line)] if one and one.manifest.step == "finetune"), None)
    label = str(base.manifest.config.get("origin") or "") if base else ""
    told = found if is_data else trained
    facts = told.facts if told else {}
    reports = [one for one in known.related if one.manifest.kind is Kind.REPORT]
    written = found.path / CARD if CARD in found.manifest.files else None
    return HubCard(
        repo=repo,
        kind=_shape(found),
        base=None if is_data or base is None else label or base.path.name,
        base_id=None if is_data or not label else origin.hub_id(label),
        tuned=trained is not None,
        licence=None if is_data or base is None else licence_of(base) or origin.licence(label),
        languages=list(_languages(found, reports)),
        datasets=() if is_data else known.datasets,
        files=names,
        measured=next(filter(None, (list(_rows(found, report)) for report in reports)), []),
        command=known.command,
        facts={key: facts[key] for key in (_CLEANED if is_data else _TRAINED) if facts.get(key) is not None},
        lineage={**{role: fingerprint for role, fingerprint, _ in reversed(line)}, found.manifest.step: found.fingerprint},
        written=written.read_text("utf-8", "replace") if written else None,
    )


def _shape(found: Artifact) -> str:
    """The kind of its card: a fine-tune of every weight is a model, though it is published as what a fine-tune is."""
    whole = found.manifest.kind is Kind.ADAPTER and "adapter_config.json" not in found.manifest.files
    return str(Kind.MODEL if whole else found.manifest.kind)


def _ancestors(found: Artifact, family: Mapping[str, Artifact]) -> Iterator[tuple[str, str, Artifact | None]]:
    """Role, fingerprint and, where it is here, the artifact of everything that this was made from, nearest first."""
    seen, queue = set(), list(found.manifest.inputs.items())
    while queue:
        role, fingerprint = queue.pop(0)
        if fingerprint not in seen:
            seen.add(fingerprint)
            one = family.get(fingerprint)
            yield role, fingerprint, one
            queue += one.manifest.inputs.items() if one else ()


def _root(line: Sequence[tuple[str, str, Artifact | None]]) -> Artifact | None:
    """The model at the beginning, where no step calls it the base."""
    models = [one for _, _, one in line if one and one.manifest.kind is Kind.MODEL and not one.manifest.inputs]
    return models[-1] if models else None


def _rows(found: Artifact, report: Artifact) -> Iterator[Measured]:
    """The rows of an evaluation that measured just this artifact's files, and that nobody has changed since."""
    if _changed(report):
        return
    try:
        told = json.loads((report.path / "report.json").read_text("utf-8"))
        mine = [one["name"] for one in told["lineage"] if one["fingerprint"] == found.fingerprint]
        rows = {name: row for name, row in told["models"].items() if not row.get("changed") and not row.get("failed")}
        if found.manifest.kind is Kind.GGUF and mine:
            lora = found.facts.get("adapter")
            mine = [*found.facts["types"], *([f"{lora['base']['type']}+lora"] if lora else [])]
        for name in mine:
            if name in rows:
                row = rows[name]
                metrics = {**row["metrics"], "perplexity": row.get("perplexity")}
                numbers = {key: float(value) for key, value in metrics.items() if value is not None}
                yield Measured(name, numbers, int(row["n_samples"]), row.get("retention"))
    except (OSError, ValueError, KeyError, TypeError):  # written by another version
        return


def _changed(report: Artifact) -> bool:
    try:
        return any(not one.startswith("not in the manifest") for one in artifact.verify(report))
    except OSError:
        return True


def _languages(found: Artifact, reports: Sequence[Artifact]) -> Iterator[str]:
    """Of the evaluated dialogues, or those that cleaning was told to keep."""
    for report in reports:
        try:
            told = json.loads((report.path / "report.json").read_text("utf-8"))
            if any(one["fingerprint"] == found.fingerprint for one in told["lineage"]):
                yield from sorted(one for one in told["breakdown"].get("language", {}) if re.fullmatch(r"[a-z]{2,3}", one))
                return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    kept = found.manifest.config.get("languages")
    yield from (one for one in kept if isinstance(one, str)) if isinstance(kept, list) else ()
