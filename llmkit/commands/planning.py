"""`llmkit plan`: what would run and why, what it needs, whether it fits; and which precision of a model fits which device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmkit import artifact, pipeline, recipe
from llmkit.artifact import Artifact
from llmkit.commands.remembered import recall
from llmkit.commands.result import Result, width
from llmkit.commands.running import verdict
from llmkit.errors import LlmkitError
from llmkit.pipeline import Chain, Planned
from llmkit.planning import advice, config, data, machine, shapes, steps
from llmkit.planning import fits as fitting
from llmkit.recipe import Recipe
from llmkit.report import plan as report

_BYTES = {"float32": 4, "float": 4}  # of a stored weight, by config.json's dtype; else 2


def plan(name: str | None, overrides: Sequence[str], workspace: Path) -> Result:
    """A verdict and a reason for every step, and what those that run need; nothing is run, fetched or remembered."""
    given, kept = recall(workspace, name, overrides)
    chosen = recipe.load(recipe.find(given), kept)
    chain = pipeline.lay_out(chosen, await_files=True)
    planned = pipeline.plan(chain, workspace / chosen.name)
    here = machine.look(workspace)
    missing: list[dict[str, Any]] = [{"name": one.label, "bytes": None} for one in chain.origins.values() if not one.ready]
    entries = [{**verdict(one), "after": _after(one, planned), "need": None, "advice": None} for one in planned]
    told: dict[str, Any] = {
        "recipe": chosen.name,
        "machine": {**asdict(here), "gpus": [asdict(one) for one in here.gpus]},
        "steps": entries,
        "to_fetch": missing,
    }
    notes: list[str] = []
    try:
        base = _config(chosen, chain)
        shape = shapes.of_config(base.raw, where=base.where)
    except LlmkitError as error:
        told |= {"notes": [f"no memory or time is told: {error.what} ({error.next})"], "total": None}
        return Result(report.render(told, width=width()), told)
    if not base.here:
        notes.append(f"sizes from {base.where}")
    worlds = _Worlds(chosen, chain, planned, shape, here)
    for one, entry in zip(planned, entries, strict=True):
        if not one.fresh:
            entry.update(worlds.needs(one))
    for found in missing:
        if found["name"] == chosen.model:
            found["bytes"] = _fetched(base, shape)
    told |= {"notes": notes, "total": _total(entries)}
    return Result(report.render(told, width=width()), told)


def fits(model: str, *, context: int) -> Result:
    """`llmkit plan --model`: a table of precisions and devices, from config.json alone.

    Raises: as `planning.config.find` and `planning.shapes.of_config`.
    """
    found = config.find(model)
    shape = shapes.of_config(found.raw, where=found.where)
    notes = [] if shape.family else ["llmkit cannot export this architecture to GGUF, so those types are left out"]
    if found.raw.get("quantization_config"):
        notes.append("this model is quantized already: the table is that of the model it was made from")
    if context > shape.context:
        notes.append(f"the model was trained for {shape.context} tokens, not {context}")
    table = fitting.table(shape, context=context)
    if any(one["method"] == "lora" and one["phases"]["loading"] > one["phases"]["training"] for one in table["training"]):
        notes.append("training loads the base in float32 on every device before it is shared out: that is what must fit")
    told = {"model": model, "from": found.where, "parameters": shape.parameters, "context": context, **table, "notes": notes}
    return Result(report.render_fits(told, width=width()), told)


class _Worlds:
    """What each step of one recipe is planned in; data are read once."""

    def __init__(
        self, chosen: Recipe, chain: Chain, planned: Sequence[Planned], shape: shapes.Shape, here: machine.Machine
    ) -> None:
        self._chosen = chosen
        self._folders = {one.node.name: one.folder for one in planned}
        self._shape, self._here = shape, here
        self._sources = [found.ready for name, found in chain.origins.items() if name.startswith("source.") and found.ready]
        self._train = self._data("train")
        self._test = self._data("test")
        nodes = [one.node for one in planned]
        self._quantized = tuple(
            steps.precision(node.config.model_dump(mode="json")) for node in nodes if node.step.VERB == "quantize"
        )

    def needs(self, one: Planned) -> dict[str, Any]:
        """The entries `need` and `advice` of a step."""
        verb, settings = one.node.step.VERB, one.node.config.model_dump(mode="json")
        world = self._world(one)
        need = steps.of(verb, settings, world)
        found = advice.advise(verb, settings, world)
        remedy = None
        if found:
            left = found.need.memory.total if found.need else None
            remedy = {"lacks": found.lacks, "options": found.options(verb), "memory": left, "otherwise": found.otherwise}
        return {"need": need.to_json(), "advice": remedy}

    def _world(self, one: Planned) -> steps.World:
        old = artifact.load(one.folder)
        export = self._chosen.export
        return steps.World(
            self._shape,
            self._here,
            data=self._train,
            tests=self._test,
            before=old.facts if old else None,
            source_bytes=sum(source.size_bytes for source in self._sources),
            tuned=self._chosen.finetune is not None,
            seed=self._chosen.seed,
            quantized=self._quantized,
            types=tuple(export.types) if export and export.types != "auto" else (),
        )

    def _data(self, side: str) -> data.Data | None:
        """As a step has written it, even if that is stale now; else what the raw sources hold."""
        size = self._shape.vocabulary
        for name in ("pairs", "clean"):
            if name in self._folders and (found := data.of_split(self._folders[name] / f"{side}.jsonl", vocabulary=size)):
                return found
        if not self._sources or not self._chosen.data:
            return None
        rules, split = self._chosen.clean, self._chosen.data.split
        return data.of_sources(
            self._sources,
            vocabulary=size,
            min_turns=rules.min_turns,
            max_chars=rules.max_chars,
            train=float(getattr(split, side)),
        )


def _config(chosen: Recipe, chain: Chain) -> config.Found:
    ready: Artifact | None = chain.origins["base"].ready
    if ready and ready.path.is_dir():
        return config.Found(config.read(ready.path / "config.json"), chosen.model)
    return config.find(chosen.model)


def _after(one: Planned, planned: Sequence[Planned]) -> str | None:
    """The last step that it reads, which it hangs from in the tree."""
    read = set(one.node.inputs.values())
    return next((other.node.name for other in reversed(planned) if other.node.name in read), None)


def _fetched(base: config.Found, shape: shapes.Shape) -> int:
    kind = base.raw.get("dtype") or base.raw.get("torch_dtype")
    return shape.parameters * _BYTES.get(str(kind), 2)


def _total(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    needs = {entry["name"]: entry["need"] for entry in entries if entry["need"]}
    if not needs:
        return None
    times = [need["seconds"] for need in needs.values() if need["seconds"]]
    return {
        "memory": max(need["memory"]["total"] for need in needs.values()),
        "disk": sum(need["disk"]["writes"] for need in needs.values()),
        "seconds": {key: sum(one[key] for one in times) for key in ("low", "high")} if times else None,
        "untimed": [name for name, need in needs.items() if not need["seconds"]],
    }
