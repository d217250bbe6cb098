"""What each command does, as values: text for a person, data for a machine. Prints nothing; `cli.py` does."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import artifact, origin, pipeline, progress, recipe
from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError, FidelityError, GateError, LlmkitError, UsageError
from llmkit.pipeline import Allowed, Done, Node, Planned
from llmkit.recipe import Recipe

if TYPE_CHECKING:
    from llmkit.engine import mask


@dataclass(frozen=True)
class Result:
    """What a command found: `text` for stdout, or `data` as one JSON object under --json.

    `failure`: what the exit code and stderr tell once that is printed.
    """

    text: str
    data: Mapping[str, Any]
    failure: LlmkitError | None = None


def run(name: str, overrides: Sequence[str], workspace: Path, *, force: bool, allow: Allowed) -> Result:
    """The whole chain of a recipe."""
    chosen = recipe.load(recipe.find(name), overrides)
    _remember(workspace, name, overrides)
    return _execute(chosen, workspace, targets=None, force=force, allow=allow)


def step(
    verb: str,
    name: str | None,
    overrides: Sequence[str],
    workspace: Path,
    *,
    flags: Sequence[str],
    force: bool,
    allow: Allowed,
) -> Result:
    """One step of a recipe, its stale inputs first. `flags`: the command's own options, as overrides.

    Those that change what later steps build on are remembered with the recipe; `--bits` and `--type` choose for now.
    """
    given, kept = _recall(workspace, name, overrides)
    chosen = recipe.load(recipe.find(given), [*kept, *flags])
    _remember(workspace, given, [*kept, *flags] if verb in ("clean", "finetune", "merge") else kept)
    targets = [node.name for node in pipeline.lay_out(chosen).nodes if verb == node.step.VERB]
    if not targets:
        raise UsageError(
            f"the recipe {chosen.name} has no {verb} step", where=given, next=f"add a `{verb}:` section, or use --input"
        )
    return _execute(chosen, workspace, targets=targets, force=force, allow=allow)


def explain_record(
    record: str, name: str | None, overrides: Sequence[str], workspace: Path, dataset: Path | None, given: str | None
) -> Result:
    """`llmkit clean --explain ID`: what became of one record of a dataset, rule by rule.

    The dataset is the folder given, or what the recipe's clean step wrote; the record's own line is looked up in the
    sources, to show what was changed.
    """
    from llmkit.data import rules, story
    from llmkit.steps import clean

    if dataset is None:
        chosen, kept = _recall(workspace, name, overrides)
        loaded = recipe.load(recipe.find(chosen), kept)
        dataset = workspace / loaded.name / "clean"
        sources = [source.path for source in loaded.data.sources] if loaded.data else []
    else:
        sources = [given] if given else []
    made = artifact.expect(dataset, Kind.DATASET)
    if made.manifest.step != clean.VERB:
        raise UsageError(
            f"made by {made.manifest.step}, not by clean", where=str(dataset), next="name what `llmkit clean` wrote"
        )
    end, entry = story.find(made.path, record)
    config = clean.Config(**made.manifest.config)
    chain = rules.chain(clean.line_rules(config.model_copy(update={"custom": ()})))
    raw = _raw_line(str(entry.get("source", "")), sources)
    lines = story.tell(end, entry, chain, raw=raw, edited_field=config.edited_field)
    return Result("\n".join(lines), {"end": end, "entry": entry, "story": lines})


def _raw_line(source: str, paths: Sequence[str]) -> bytes | None:
    """The line FILE:LINE as it came, where its file is one of the sources and holds plain JSON lines."""
    from llmkit.data import story, unpack

    label, _, number = source.rpartition(":")
    for path in paths:
        found = origin.source(path).ready
        for file in origin.files_of(found) if found else ():
            if label in (file.name, str(file)) and unpack.is_plain(file) and number.isdigit():
                return story.raw_line(file, int(number))
    return None


def plan(name: str | None, overrides: Sequence[str], workspace: Path) -> Result:
    """A verdict and a reason for every step; nothing is run, fetched or remembered."""
    given, kept = _recall(workspace, name, overrides)
    chosen = recipe.load(recipe.find(given), kept)
    chain = pipeline.lay_out(chosen)
    planned = pipeline.plan(chain, workspace / chosen.name)
    width = max(len(one.node.name) for one in planned)
    missing = [found.label for found in chain.origins.values() if not found.ready]
    lines = [f"{one.node.name:<{width}}  {'fresh' if one.fresh else f'runs: {one.reason}'}" for one in planned]
    lines += [f"{'':<{width}}  to be fetched first: {label}" for label in missing]
    return Result("\n".join(lines), {"recipe": chosen.name, "steps": [_verdict(one) for one in planned], "to_fetch": missing})


def validate(name: str) -> Result:
    """Keys, types, and that what the recipe names is there."""
    chosen = recipe.load(recipe.find(name))
    nodes = [node.name for node in pipeline.lay_out(chosen).nodes]
    return Result(f"{chosen.name}: valid; steps: {', '.join(nodes)}", {"recipe": chosen.name, "steps": nodes})


def list_recipes() -> Result:
    """The bundled recipes, each with the first line of its comment."""
    found = {name: path.read_text("utf-8").splitlines()[0].lstrip("# ") for name, path in recipe.bundled().items()}
    width = max(map(len, found))
    return Result("\n".join(f"{name:<{width}}  {line}" for name, line in found.items()), found)


def show_recipe(name: str) -> Result:
    """A recipe as it is written."""
    path = recipe.find(name)
    recipe.read(path)
    text = path.read_text("utf-8")
    return Result(text.rstrip("\n"), {"path": str(path), "text": text})


def inspect(path: Path) -> Result:
    """What an artifact says of itself; of GGUF files, what stands in them and what is wrong with them.

    Raises:
        UsageError: neither an artifact nor a GGUF file.
        DataError: a GGUF file that is damaged.
    """
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        text, data = _inspected_gguf(path)
        return Result(text, data, _failure([data], path))
    found = artifact.expect(path, *Kind)
    manifest = found.manifest
    lines = [
        f"{manifest.kind} made by {manifest.step}, {found.size_bytes / 1e6:.1f} MB, fingerprint {manifest.fingerprint[:16]}"
    ]
    lines += [f"input {role}: {fingerprint[:16]}" for role, fingerprint in manifest.inputs.items()]
    lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in manifest.facts.items()]
    told = json.loads((path / artifact.MANIFEST).read_text("utf-8"))
    if manifest.kind is not Kind.GGUF:
        return Result("\n".join(lines), told)
    inspected = [_inspected_gguf(file) for file in _first_parts(path)]
    files = [data for _, data in inspected]
    return Result(
        "\n\n".join(["\n".join(lines), *(text for text, _ in inspected)]), {**told, "gguf": files}, _failure(files, path)
    )


def _first_parts(folder: Path) -> Iterator[Path]:
    """Every GGUF file of a folder, but of a model in parts the first alone."""
    for file in sorted(folder.glob("*.gguf")):
        if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name):
            yield file


def _inspected_gguf(path: Path) -> tuple[str, dict[str, Any]]:
    from llmkit.gguf import container, lint
    from llmkit.report import gguf

    parts = container.open_split(path)
    findings = [asdict(found) for found in lint.lint(parts)]
    told = lint.describe(parts)
    return gguf.render(told, findings), {**told, "findings": findings}


def _failure(inspected: Sequence[Mapping[str, Any]], path: Path) -> LlmkitError | None:
    errors = sum(finding["severity"] == "error" for one in inspected for finding in one["findings"])
    if not errors:
        return None
    return GateError(f"{errors} error{'s' if errors > 1 else ''} found", where=str(path), next="see above what to do")


def inspect_mask(folder: Path, model: str | None, template: str, *, limit: int, color: bool) -> Result:
    """`llmkit inspect DATASET --mask`: the first records as training reads them, with what of them is learnt marked.

    A record with a rejected answer is shown as a pair. `color`: ANSI colours rather than brackets.

    Raises:
        UsageError: no `model`, or a template that does not fit it.
        DataError: no dataset, no tokenizer, or a record that the template cannot take (names it).
    """
    from llmkit.report import samples

    if not model:
        raise UsageError("inspect --mask needs --model, the base", next="for example --model demo:gemma-3-270m")
    records = _first_records(_dataset(folder).path, limit)  # before a model is fetched
    lines, found = [], []
    for name, tokens, shown in _masked(records, _here(origin.model(model)).path, template):
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
        raise DataError("the dataset has no record to show", where=str(path))
    extras: list[dict[str, Any]] = [{} if one.rejected is None else {"rejected": one.rejected} for one in records]
    return [{"id": one.id, "messages": one.messages, **extra} for one, extra in zip(records, extras, strict=True)]


def _masked(records: Sequence[Mapping[str, Any]], base: Path, name: str) -> Iterator[tuple[str, list[str], "mask.Shown"]]:
    """Each record's id, its tokens as the tokenizer spells them, and what training makes of it."""
    from llmkit.engine import loading, mask, templates

    template, tokenizer = templates.resolve(name, base), loading.load_tokenizer(base)
    for record in records:
        for shown in mask.show(record, tokenizer, template):
            yield record["id"], tokenizer.convert_ids_to_tokens(shown.encoded.input_ids), shown


def verify(folder: Path) -> Result:
    """Hash every file of an artifact, or of every artifact below `folder`, again.

    Raises:
        UsageError: there is no artifact.
        FidelityError: a file is missing, changed or unknown.
    """
    folders = [folder] if artifact.load(folder) else sorted(path.parent for path in folder.glob(f"*/{artifact.MANIFEST}"))
    found = [artifact.expect(one, *Kind) for one in folders] or [artifact.expect(folder, *Kind)]
    problems = [f"{one.path}: {problem}" for one in found for problem in artifact.verify(one)]
    if problems:
        raise FidelityError(
            "; ".join(problems), where=str(folder), next="run the recipe again with --force, or restore the files"
        )
    count = sum(len(one.manifest.files) for one in found)
    return Result(f"{len(found)} artifacts, {count} files: all as recorded", {"artifacts": len(found), "files": count})


def score(predictions: Path, references: Path, output: Path, *, compat: Sequence[str], force: bool) -> Result:
    """`llmkit eval --predictions P --references R --output DIR`: scores of texts alone."""
    from llmkit.evaluation import texts

    report, samples = texts.score_files(predictions, references, compat=compat)
    if output.exists() and not force:
        raise UsageError(
            "the output is there already",
            where=str(output),
            next="name another --output, or --force to replace its report.json",
        )
    output.mkdir(parents=True, exist_ok=True)
    texts.write(report, samples, output)
    (model,) = report["models"].values()
    lines = [_scored(name, value, model["intervals"].get(name)) for name, value in model["metrics"].items()]
    lines += [f"{name}: {signature}" for name, signature in report["signatures"].items()]
    return Result("\n".join([*lines, f"{report['n_samples']} samples; intervals of 95 %"]), report)


def _scored(name: str, value: float, interval: Sequence[float] | None) -> str:
    return f"{name:<13} {value:6.2f}" + (f"  [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def compare(names: Sequence[str], max_drop: Mapping[str, float], *, markdown: Path | None, junit: Path | None) -> Result:
    """`llmkit compare A B [C…]`: reports sample by sample, and a verdict where --max-drop asks for one."""
    from llmkit.evaluation import judging
    from llmkit.metrics import compare as comparing
    from llmkit.report import comparison
    from llmkit.report import junit as unit

    if junit and not max_drop:
        raise UsageError("--junit tells of a gate", next="add --max-drop METRIC=POINTS")
    compared = comparing.compare(names, max_drop=max_drop, score=judging.tallies)
    data = compared.to_json()
    for path in filter(None, (markdown, junit)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if markdown:
        markdown.write_text(comparison.markdown(data) + "\n", encoding="utf-8")
    if junit:
        junit.write_text(unit.xml(data["gate"]), encoding="utf-8")
    return Result(comparison.render(data, width=_width(), color=False), data, _judged(data["gate"]))


def _judged(gate: Mapping[str, Any] | None) -> LlmkitError | None:
    """What a gate's verdict means for the exit code: 1 for a failure, 2 where it cannot be told."""
    from llmkit.evaluation import judging

    if gate is None or gate["verdict"] == "pass":
        return None
    why = judging.failure(gate)
    if gate["verdict"] == "fail":
        return GateError(f"the gate failed: {why}")
    few = any(check["samples_needed"] for check in gate["checks"])
    remedy = "give it more samples, or allow a larger drop" if few else "measure that, or leave the limit or the row out"
    return DataError(f"the gate cannot tell: {why}", next=remedy)


def _width() -> int:
    return shutil.get_terminal_size((110, 24)).columns


@dataclass(frozen=True)
class Alone:
    """A step to be run on what no recipe made."""

    verb: str
    given: str
    output: Path
    model: str | None = None
    data: str | None = None
    format: str | None = None


def alone(job: Alone, name: str | None, overrides: Sequence[str], *, force: bool, allow: Allowed) -> Result:
    """One step with `--input` and `--output`; its settings are the recipe's, if one is named, else the defaults."""
    settings = _settings(job, name, overrides)
    node, inputs = _ALONE[job.verb](job, settings, allow)
    config = node.config.model_dump(mode="json")
    fingerprint = artifact.digest(job.verb, node.step.REVISION, config, {role: one.fingerprint for role, one in inputs.items()})
    known = artifact.load(job.output)
    if known and known.fingerprint == fingerprint and not force:
        return _published(job, known, fresh=True)
    if any(one.path.resolve() == job.output.resolve() for one in inputs.values()):
        raise UsageError(f"{job.verb} would replace what it reads", where=str(job.output), next="name another --output")
    _claim(job.output, force=force)
    node.check()
    return _published(
        job, pipeline.build(node.step, node.config, inputs, folder=job.output, fingerprint=fingerprint), fresh=False
    )


def _published(job: Alone, made: Artifact, *, fresh: bool) -> Result:
    data = {"step": job.verb, "path": str(job.output), "fresh": fresh, "facts": dict(made.facts), **_report_of(made)}
    lines = [f"{job.verb}: {'fresh, nothing to do' if fresh else 'done'}; {job.output}"]
    return Result("\n".join([*lines, *_shown(made)]), data, _judged(made.facts.get("gate")))


def _claim(output: Path, *, force: bool) -> None:
    """Make sure that `output` may be written: never over what is there, unless forced and llmkit's own."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        if output.exists():
            output.rmdir()
        return
    ours = artifact.load(output) is not None
    if not force or not ours:
        hint = "name another --output" + (", or --force to replace it" if ours else "")
        raise UsageError("the output is there already", where=str(output), next=hint)


def _settings(job: Alone, name: str | None, overrides: Sequence[str]) -> Recipe:
    """A whole recipe around the one step, so that its settings are checked by the same schema."""
    raw: dict[str, Any] = {}
    where = "the command line"
    if name:
        path = recipe.find(name)
        where = str(path)
        raw, _ = recipe.read(path)
    recipe.override(raw, overrides)
    raw.setdefault("name", "alone")
    raw.setdefault("model", job.model or "demo:gemma-3-270m")
    data = raw.get("data")
    raw["data"] = {**(data if isinstance(data, dict) else {}), "sources": [{"path": job.given, "format": job.format}]}
    if raw.get(job.verb) is None:
        raw[job.verb] = {}
    if job.verb == "eval" and isinstance(raw["eval"], dict) and _is_url(job.given):
        endpoint = raw["eval"].get("endpoint")
        raw["eval"]["endpoint"] = {**(endpoint if isinstance(endpoint, dict) else {}), "url": job.given}
    return recipe.validate(Recipe, raw, where=where)


def _clean_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    only = settings.model_copy(update={"finetune": None, "export": None, "eval": None, "quantize": ()})
    chain = pipeline.lay_out(only, allow=allow)
    return chain.nodes[0], {role: _here(chain.origins[name]) for role, name in chain.nodes[0].inputs.items()}


def _finetune_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import finetune

    assert settings.finetune
    dataset, base = _dataset(Path(job.given)), _base(job)
    config = settings.finetune
    seeded = config if config.seed is not None else config.model_copy(update={"seed": settings.seed})
    node = Node("finetune", finetune, seeded, {}, lambda: finetune.check(seeded, base.path))
    start = {"init": _here(origin.adapter(seeded.init_adapter))} if seeded.init_adapter else {}
    return node, {"dataset": dataset, "base": base, **start}


def _merge_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import merge

    adapter = _here(origin.adapter(job.given))
    others = {f"adapter.{index}": _here(origin.adapter(other.path)) for index, other in enumerate(settings.merge.adapters)}
    return Node("merge", merge, settings.merge, {}), {"adapter": adapter, "base": _base(job), **others}


def _quantize_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import quantize

    if len(settings.quantize) != 1:
        raise UsageError("quantize alone makes one checkpoint", next="say --bits 8 or --bits 4")
    return Node("quantize", quantize, settings.quantize[0], {}), {"model": _folder(Path(job.given), Kind.MODEL, "config.json")}


def _export_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import export

    assert settings.export
    config, inputs = settings.export, {"model": _folder(Path(job.given), Kind.MODEL, "config.json")}
    if config.adapter:
        raise UsageError("an adapter is exported by a recipe's run", next="use `llmkit export --recipe`")
    if job.data:
        inputs["dataset"] = _dataset(Path(job.data))
    if job.model:
        inputs["base"] = _base(job)
    if isinstance(config.imatrix, str):
        inputs["imatrix"] = _here(origin.file(config.imatrix))
    folder = inputs["model"].path
    tuned, data = "base" in inputs, "dataset" in inputs
    node = Node(
        "export", export, config, {}, lambda: export.check(config, folder, template=config.template, tuned=tuned, data=data)
    )
    return node, inputs


def _eval_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.evaluation import variants
    from llmkit.steps import eval as evaluation

    assert settings.eval
    if not job.data:
        raise UsageError("eval alone needs --data, a dataset folder with test.jsonl", next="make one with `llmkit clean`")
    config, inputs = settings.eval, {"dataset": _dataset(Path(job.data))}
    if job.model:
        inputs["base"] = _base(job)
    if _is_url(job.given):
        pass  # its row is `config.endpoint`
    elif job.given.lower().endswith(".gguf"):
        inputs["file"] = _here(origin.file(job.given))
    else:
        folder = Path(job.given)
        # Its row is called as the folder is, beside that of the model it is compared with.
        found = _measurable(folder)
        alone = "merged" if found.manifest.step == "merge" else "base"
        inputs[variants.row_name(folder.resolve().name) if job.model else alone] = found
    if config.tasks and not any(one.manifest.kind in (Kind.MODEL, Kind.QUANTIZED) for one in inputs.values()):
        raise UsageError("benchmarks need a Hugging Face model beside it", where=job.given, next="name it with --model")
    files = pipeline.evaluation_files(config)
    rows = [variants.row_name(inputs[name].path.stem) if name == "file" else name for name in inputs if name != "dataset"]
    rows += [config.endpoint.name] if config.endpoint else []
    folders = "file" not in inputs and not config.endpoint
    allowed = {"allow_code": allow.code, "allow_exec": allow.code_exec}
    check = partial(evaluation.check, config, rows=rows, folders=folders, **allowed)
    return Node("eval", evaluation, config, {}, check), inputs | {role: _here(found) for role, found in files.items()}


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _measurable(folder: Path) -> Artifact:
    """A model that answers by itself, with a hint for what does not."""
    known = artifact.load(folder)
    if known and known.manifest.kind is Kind.ADAPTER:
        raise UsageError(
            "an adapter alone answers nothing", where=str(folder), next="merge it first, as `llmkit merge --input`"
        )
    if known and known.manifest.kind is Kind.GGUF:
        files = ", ".join(name for name in known.manifest.files if name.endswith(".gguf"))
        raise UsageError("this folder holds GGUF files", where=str(folder), next=f"name one of them: {files}")
    return _folder(folder, Kind.MODEL, "config.json", Kind.QUANTIZED)


_ALONE: Mapping[str, Callable[[Alone, Recipe, Allowed], tuple[Node, dict[str, Artifact]]]] = {
    "clean": _clean_alone,
    "finetune": _finetune_alone,
    "merge": _merge_alone,
    "quantize": _quantize_alone,
    "export": _export_alone,
    "eval": _eval_alone,
}


def _base(job: Alone) -> Artifact:
    if not job.model:
        raise UsageError(f"{job.verb} alone needs --model, the base", next="for example --model demo:gemma-3-270m")
    return _here(origin.model(job.model))


def _here(found: origin.Origin) -> Artifact:
    return found.ready or found.fetch()


def _dataset(folder: Path) -> Artifact:
    return _folder(folder, Kind.DATASET, "train.jsonl" if (folder / "train.jsonl").exists() else "test.jsonl")


def _folder(folder: Path, kind: Kind, needs: str, *others: Kind) -> Artifact:
    """An artifact of ours, of this kind or one of the others, or any folder that holds the file which makes it one."""
    known = artifact.load(folder)
    if known:
        return artifact.expect(folder, kind, *others)
    if not (folder / needs).is_file():
        raise DataError(
            f"this is no {kind} folder: it has no {needs}" if folder.is_dir() else f"no such {kind} folder", where=str(folder)
        )
    return artifact.foreign(folder, kind, cache_folder=origin.cache_folder())


def _execute(chosen: Recipe, workspace: Path, *, targets: Sequence[str] | None, force: bool, allow: Allowed) -> Result:
    done = pipeline.execute(chosen, workspace / chosen.name, targets=targets, force=force, allow=allow, report=_tell)
    data: dict[str, Any] = {"recipe": chosen.name, "folder": str(workspace / chosen.name)}
    data["steps"] = [_outcome(one) for one in done]
    last = done[-1].artifact
    data |= _report_of(last)
    lines = _shown(last)
    ran = sum(one.seconds > 0 for one in done)
    lines.append(f"{chosen.name}: {ran} of {len(done)} steps run, the rest was fresh; {last.path}")
    return Result("\n".join(lines), data, _judged(last.facts.get("gate")))


def _tell(done: Done) -> None:
    state = f"done in {done.seconds:.1f} s" if done.seconds else "fresh"
    progress.note(f"{done.planned.node.name}: {state}")


def _outcome(done: Done) -> dict[str, Any]:
    return {**_verdict(done.planned), "seconds": done.seconds, "facts": dict(done.artifact.facts)}


def _verdict(one: Planned) -> dict[str, Any]:
    return {
        "name": one.node.name,
        "fresh": one.fresh,
        "reason": one.reason,
        "path": str(one.folder),
        "fingerprint": one.fingerprint,
    }


def _report_of(made: Artifact) -> dict[str, Any]:
    path = made.path / "report.json"
    return {"report": json.loads(path.read_text("utf-8"))} if path.is_file() else {}


def _shown(made: Artifact) -> list[str]:
    """The artifact's report in short: what cleaning dropped, how training went, or what was measured."""
    if made.manifest.step == "finetune":
        return _trained(made)
    report = _report_of(made).get("report")
    if not report:
        return []
    if made.manifest.kind is Kind.DATASET:
        from llmkit.report import cleaning

        return [cleaning.summary(report), f"the whole report: {made.path / 'report.html'}"]
    from llmkit.report import table

    lines = [table.render(report, width=_width(), color=False)]
    if report.get("gate"):
        from llmkit.report import verdict

        lines.append(verdict.render(report["gate"], width=_width(), color=False))
    from llmkit.report import brief

    lines += brief.lines(report)
    pages = {"the whole report": "report.html", "to be rated": "review.html"}
    return [*lines, *(f"{what}: {made.path / name}" for what, name in pages.items() if (made.path / name).is_file())]


def _remember(workspace: Path, name: str, overrides: Sequence[str]) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    path = Path(name)
    kept = str(path.resolve()) if path.is_file() else name
    artifact.write_json(workspace / "last.json", {"recipe": kept, "set": list(overrides)})


def _recall(workspace: Path, name: str | None, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe to use and its overrides: the one named, ./llmkit.yaml, or the last one run here with what it was run with."""
    if name:
        return name, list(overrides)
    if Path("llmkit.yaml").is_file():
        progress.note("recipe: ./llmkit.yaml")
        return "llmkit.yaml", list(overrides)
    try:
        last = json.loads((workspace / "last.json").read_text("utf-8"))
        given, kept = str(last["recipe"]), [str(one) for one in last["set"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UsageError("which recipe?", next="say --recipe NAME, for example --recipe quickstart") from None
    shown = "".join(f" --set {one}" for one in kept)
    progress.note(f"recipe: {given}{shown} (the last one run here)")
    return given, [*kept, *overrides]


def _trained(made: Artifact) -> list[str]:
    facts = made.facts
    before, after, best = facts.get("valid_loss_before"), facts.get("valid_loss_after"), facts.get("best_step")
    lines = [] if before is None else [f"loss on held-out dialogues: {before:.3f} → {after:.3f}"]
    kept = f"; kept: step {best}" if best and best != facts["steps"] else ""
    lines.append(f"{facts['steps']} steps over {facts['records']} records at {facts['tokens_per_second']:.0f} tokens/s{kept}")
    return [*lines, f"curves and sample answers: {made.path / 'report.html'}"]
