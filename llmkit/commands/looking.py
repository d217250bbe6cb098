"""`llmkit inspect`: what artifacts, models and GGUF files hold, and what they were made of."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import artifact, origin
from llmkit.artifact import Artifact, Kind
from llmkit.commands import given, workspace
from llmkit.commands.result import Result
from llmkit.errors import DataError, GateError, LlmkitError, UsageError
from llmkit.report import lineage
from llmkit.report.gguf import visible

if TYPE_CHECKING:
    from llmkit.engine import mask

_REDO = "run the recipe again with --force, or restore the file"


def inspect(path: Path) -> Result:
    """What an artifact says of itself and what it was made of; of GGUF files, what stands in them and what is wrong with them.

    A model or adapter folder of someone else's is told by its configuration.

    Raises:
        UsageError: neither an artifact nor a model nor a GGUF file.
        DataError: a GGUF file, a manifest or a configuration that is damaged.
    """
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        text, data = _inspected_gguf(path)
        return Result(text, data, _failure([data], path))
    found = lineage.read(path)
    if found is None:
        return _inspected_foreign(path)
    manifest = found.manifest
    traced, tree = _lineage(found)
    lines = [
        f"{manifest.kind} made by {visible(manifest.step)}, {found.size_bytes / 1e6:.1f} MB, "
        f"fingerprint {visible(manifest.fingerprint[:16])}",
        *_facts(manifest.facts),
        *(["made of", *tree] if tree else []),
        *(f"the whole report: {page}" for page in [path / "report.html"] if page.is_file()),
    ]
    told = {**json.loads((path / artifact.MANIFEST).read_text("utf-8")), "lineage": lineage.data(traced)}
    if manifest.kind is not Kind.GGUF:
        return Result("\n".join(lines), told)
    inspected = [_inspected_gguf(file) for file in _first_parts(path)]
    files = [data for _, data in inspected]
    return Result(
        "\n\n".join(["\n".join(lines), *(text for text, _ in inspected)]), {**told, "gguf": files}, _failure(files, path)
    )


def _facts(facts: Mapping[str, Any]) -> list[str]:
    return [visible(f"{key}: {json.dumps(value, ensure_ascii=False)}") for key, value in facts.items()]


def _lineage(found: Artifact) -> tuple[dict[str, lineage.Origin], list[str]]:
    known = lineage.by_fingerprint(workspace.around(found.path))
    traced = lineage.trace(found, known, {})
    if any(one.path is None for one in traced.values()):  # only then is it worth reading recipes for their names
        traced = lineage.trace(found, known, workspace.labels(found.path))
    return traced, lineage.render(found.fingerprint, traced)


def _inspected_foreign(path: Path) -> Result:
    from llmkit.commands import foreign

    facts = foreign.describe(path)
    if facts is None:
        if (path / artifact.MANIFEST).is_file():
            raise DataError(
                f"{artifact.MANIFEST} is damaged, or of another version of llmkit", code="LK0114", where=str(path), next=_REDO
            )
        artifact.expect(path, *Kind)
    assert facts
    head = f"{facts['kind']} that llmkit did not make"
    return Result("\n".join([head, *_facts({key: value for key, value in facts.items() if key != "kind"})]), facts)


def _first_parts(folder: Path) -> Iterator[Path]:
    """Every GGUF file of a folder, but of a model in parts the first alone."""
    for file in sorted(folder.glob("*.gguf")):
        if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name):
            yield file


def _inspected_gguf(path: Path) -> tuple[str, dict[str, Any]]:
    from llmkit.gguf import container, lint
    from llmkit.report import gguf
    from llmkit.report.table import RETENTION_FLOOR

    parts = container.open_split(path)
    findings = [asdict(found) for found in lint.lint(parts)]
    told = lint.describe(parts)
    kept = _kept(path)
    lines = [gguf.render(told, findings)]
    if "retention" in kept:
        lost = f" ! it lost the fine-tune: the floor is {RETENTION_FLOOR}" if kept["retention"] < RETENTION_FLOOR else ""
        lines.append(f"retention {kept['retention']:.3f} on held-out dialogues, by the manifest beside it{lost}")
    return "\n".join(lines), {**told, **({"kept": kept} if kept else {}), "findings": findings}


def _kept(path: Path) -> dict[str, float]:
    """What export measured of this file: `retention` and `kl`, where it lies beside its manifest."""
    found = lineage.read(path.parent)
    types = found.manifest.facts.get("types") if found and found.manifest.kind is Kind.GGUF else None
    for one in types.values() if isinstance(types, Mapping) else ():
        files = one.get("files") if isinstance(one, Mapping) else None
        if isinstance(files, list) and path.name in files:
            return {key: float(one[key]) for key in ("retention", "kl") if isinstance(one.get(key), (int, float))}
    return {}


def _failure(inspected: Sequence[Mapping[str, Any]], path: Path) -> LlmkitError | None:
    errors = sum(finding["severity"] == "error" for one in inspected for finding in one["findings"])
    if not errors:
        return None
    return GateError(
        f"{errors} error{'s' if errors > 1 else ''} found", code="LK0624", where=str(path), next="see above what to do"
    )


def inspect_mask(folder: Path, model: str | None, template: str, *, limit: int, color: bool) -> Result:
    """`llmkit inspect DATASET --mask`: the first records as training reads them, with what of them is learnt marked.

    A record with a rejected answer is shown as a pair. `color`: ANSI colours rather than brackets.

    Raises:
        UsageError: no `model`, or a template that does not fit it.
        DataError: no dataset, no tokenizer, or a record that the template cannot take (names it).
    """
    from llmkit.report import samples

    if not model:
        raise UsageError("inspect --mask needs --model, the base", code="LK0106", next="for example --model demo:gemma-3-270m")
    records = _first_records(given.dataset_at(folder).path, limit)  # before a model is fetched
    lines, found = [], []
    for name, tokens, shown in _masked(records, given.here(origin.model(model)).path, template):
        runs = samples.runs(shown.offsets, shown.encoded.labels_mask)
        told = f"{name}, {shown.side}" if shown.side else name
        lines.append(f"── {told}: {len(tokens)} tokens, {sum(shown.encoded.labels_mask)} learnt")
        if shown.forged:
            lines.append(f"   left out of training: a message spells {shown.forged}")
        lines += [samples.render(shown.text, runs, shown.special, color=color).rstrip("\n"), ""]
        entry = {"record": name, "side": shown.side, "forged": shown.forged, "text": shown.text}
        found.append({**entry, "tokens": tokens, "ids": shown.encoded.input_ids, "mask": shown.encoded.labels_mask})
    return Result("\n".join(lines).rstrip("\n"), {"template": template, "samples": found})


def _first_records(dataset: Path, limit: int) -> list[dict[str, Any]]:
    from llmkit.data.record import read_records

    path = dataset / ("train.jsonl" if (dataset / "train.jsonl").exists() else "test.jsonl")
    records = list(islice(read_records(path), limit))
    if not records:
        raise DataError("the dataset has no record to show", code="LK0217", where=str(path))
    extras: list[dict[str, Any]] = [{} if one.rejected is None else {"rejected": one.rejected} for one in records]
    return [{"id": one.id, "messages": one.messages, **extra} for one, extra in zip(records, extras, strict=True)]


def _masked(records: Sequence[Mapping[str, Any]], base: Path, name: str) -> Iterator[tuple[str, list[str], "mask.Shown"]]:
    """Each record's id, its tokens as the tokenizer spells them, and what training makes of it."""
    from llmkit.engine import loading, mask, templates

    template, tokenizer = templates.resolve(name, base), loading.load_tokenizer(base)
    for record in records:
        for shown in mask.show(record, tokenizer, template):
            yield record["id"], tokenizer.convert_ids_to_tokens(shown.encoded.input_ids), shown
