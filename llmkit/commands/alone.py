"""A step on what no recipe made: `--input` and `--output`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmkit import artifact, origin, pipeline, recipe
from llmkit.artifact import Artifact, Kind
from llmkit.commands.given import artifact_at, dataset_at, here
from llmkit.commands.result import Result, judged, report_of, shown
from llmkit.errors import UsageError
from llmkit.pipeline import Allowed, Node
from llmkit.recipe import Recipe


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
        raise UsageError(
            f"{job.verb} would replace what it reads", code="LK0107", where=str(job.output), next="name another --output"
        )
    _claim(job.output, force=force)
    node.check()
    return _published(
        job, pipeline.build(node.step, node.config, inputs, folder=job.output, fingerprint=fingerprint), fresh=False
    )


def _published(job: Alone, made: Artifact, *, fresh: bool) -> Result:
    data = {"step": job.verb, "path": str(job.output), "fresh": fresh, "facts": dict(made.facts), **report_of(made)}
    lines = [f"{job.verb}: {'fresh, nothing to do' if fresh else 'done'}; {job.output}"]
    return Result("\n".join([*lines, *shown(made)]), data, judged(made.facts.get("gate")))


def _claim(output: Path, *, force: bool) -> None:
    """Make sure that `output` may be written: never over what is there, unless forced and llmkit's own."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        if output.exists():
            output.rmdir()
        return
    ours = artifact.load(output) is not None
    if not force or not ours:
        hint = "name another --output" + (", or --force to replace it" if ours else "")
        raise UsageError("the output is there already", code="LK0107", where=str(output), next=hint)


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
    return chain.nodes[0], {role: here(chain.origins[name]) for role, name in chain.nodes[0].inputs.items()}


def _finetune_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import finetune

    assert settings.finetune
    dataset, base = dataset_at(Path(job.given)), _base(job)
    config = settings.finetune
    seeded = config if config.seed is not None else config.model_copy(update={"seed": settings.seed})
    node = Node("finetune", finetune, seeded, {}, lambda: finetune.check(seeded, base.path))
    start = {"init": here(origin.adapter(seeded.init_adapter))} if seeded.init_adapter else {}
    return node, {"dataset": dataset, "base": base, **start}


def _merge_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import merge

    adapter = here(origin.adapter(job.given))
    others = {f"adapter.{index}": here(origin.adapter(other.path)) for index, other in enumerate(settings.merge.adapters)}
    return Node("merge", merge, settings.merge, {}), {"adapter": adapter, "base": _base(job), **others}


def _quantize_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import quantize

    if len(settings.quantize) != 1:
        raise UsageError("quantize alone makes one checkpoint", code="LK0106", next="say --bits 8 or --bits 4")
    return Node("quantize", quantize, settings.quantize[0], {}), {
        "model": artifact_at(Path(job.given), Kind.MODEL, "config.json")
    }


def _export_alone(job: Alone, settings: Recipe, allow: Allowed) -> tuple[Node, dict[str, Artifact]]:
    from llmkit.steps import export

    assert settings.export
    config, inputs = settings.export, {"model": artifact_at(Path(job.given), Kind.MODEL, "config.json")}
    if config.adapter:
        raise UsageError("an adapter is exported by a recipe's run", code="LK0618", next="use `llmkit export --recipe`")
    if job.data:
        inputs["dataset"] = dataset_at(Path(job.data))
    if job.model:
        inputs["base"] = _base(job)
    if isinstance(config.imatrix, str):
        inputs["imatrix"] = here(origin.file(config.imatrix))
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
        raise UsageError(
            "eval alone needs --data, a dataset folder with test.jsonl", code="LK0106", next="make one with `llmkit clean`"
        )
    config, inputs = settings.eval, {"dataset": dataset_at(Path(job.data))}
    if job.model:
        inputs["base"] = _base(job)
    if _is_url(job.given):
        pass  # its row is `config.endpoint`
    elif job.given.lower().endswith(".gguf"):
        inputs["file"] = here(origin.file(job.given))
    else:
        folder = Path(job.given)
        # Its row is called as the folder is, beside that of the model it is compared with.
        found = _measurable(folder)
        alone = "merged" if found.manifest.step == "merge" else "base"
        inputs[variants.row_name(folder.resolve().name) if job.model else alone] = found
    if config.tasks and not any(one.manifest.kind in (Kind.MODEL, Kind.QUANTIZED) for one in inputs.values()):
        raise UsageError(
            "benchmarks need a Hugging Face model beside it", code="LK0106", where=job.given, next="name it with --model"
        )
    files = pipeline.evaluation_files(config)
    rows = [variants.row_name(inputs[name].path.stem) if name == "file" else name for name in inputs if name != "dataset"]
    rows += [config.endpoint.name] if config.endpoint else []
    folders = "file" not in inputs and not config.endpoint
    allowed = {"allow_code": allow.code, "allow_exec": allow.code_exec}
    check = partial(evaluation.check, config, rows=rows, folders=folders, **allowed)
    return Node("eval", evaluation, config, {}, check), inputs | {role: here(found) for role, found in files.items()}


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _measurable(folder: Path) -> Artifact:
    """A model that answers by itself, with a hint for what does not."""
    known = artifact.load(folder)
    if known and known.manifest.kind is Kind.ADAPTER:
        raise UsageError(
            "an adapter alone answers nothing",
            code="LK0112",
            where=str(folder),
            next="merge it first, as `llmkit merge --input`",
        )
    if known and known.manifest.kind is Kind.GGUF:
        files = ", ".join(name for name in known.manifest.files if name.endswith(".gguf"))
        raise UsageError("this folder holds GGUF files", code="LK0112", where=str(folder), next=f"name one of them: {files}")
    return artifact_at(folder, Kind.MODEL, "config.json", Kind.QUANTIZED)


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
        raise UsageError(
            f"{job.verb} alone needs --model, the base", code="LK0106", next="for example --model demo:gemma-3-270m"
        )
    return here(origin.model(job.model))
