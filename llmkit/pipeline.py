"""Plans a recipe's chain and runs what is stale. Knows freshness, folders and locks; nothing of what a step does.

`plan` is pure but for reading manifests. A step's fingerprint is its verb, its revision, its config and its inputs'
fingerprints, so whatever changes upstream changes everything after it and nothing else.
"""

import fcntl
import glob
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from llmkit import artifact, origin, progress
from llmkit.artifact import Artifact, Facts, Kind, Manifest
from llmkit.errors import RecipeError, UsageError
from llmkit.evaluation import judging, settings
from llmkit.origin import Origin
from llmkit.recipe import Recipe
from llmkit.steps import clean, export, finetune, merge, pairs, quantize
from llmkit.steps import eval as evaluation


class Step(Protocol):
    """A module of `llmkit.steps`."""

    VERB: str
    REVISION: int
    KIND: Kind

    def run(self, config: Any, inputs: Mapping[str, Artifact], out: Path) -> Facts: ...


@dataclass(frozen=True)
class Allowed:
    """What of a stranger's may run. `code`: Python files that a recipe names; `code_exec`: programs that a model writes."""

    code: bool = False
    code_exec: bool = False


NOTHING = Allowed()


@dataclass(frozen=True)
class Node:
    """One step of one recipe. `inputs`: role → the name of a node or an origin; `check` runs before any work."""

    name: str
    step: Any
    config: BaseModel
    inputs: Mapping[str, str]
    check: Callable[[], None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class Chain:
    """A recipe laid out: origins by name, nodes in the order they run."""

    origins: Mapping[str, Origin]
    nodes: tuple[Node, ...]

    def upstream(self, targets: Sequence[str]) -> set[str]:
        """The targets and every node they need."""
        wanted = set(targets)
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs.values())
        return wanted & {node.name for node in self.nodes}


@dataclass(frozen=True)
class Planned:
    """A node with its verdict: `reason` is empty where the artifact in `folder` is fresh."""

    node: Node
    folder: Path
    fingerprint: str
    inputs: Mapping[str, str]
    reason: str

    @property
    def fresh(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Done:
    """What became of a node: `seconds` is 0 where nothing had to be run."""

    planned: Planned
    artifact: Artifact
    seconds: float


def lay_out(recipe: Recipe, *, allow: Allowed = NOTHING, await_files: bool = False) -> Chain:
    """The chain that a recipe describes; a part it leaves out is not run.

    `await_files`: data and word lists may be missing, for a plan of what is to come.

    Raises:
        UsageError, DataError: what the recipe names is not there, or its parts do not fit together.
    """
    source: Callable[..., Origin] = origin.awaited(origin.source) if await_files else origin.source
    file: Callable[..., Origin] = origin.awaited(origin.file) if await_files else origin.file
    origins = {"base": origin.model(recipe.model)}
    nodes: list[Node] = []
    if recipe.data:
        sources = {f"source.{index}": source(s.path, languages=s.languages) for index, s in enumerate(recipe.data.sources)}
        origins |= sources
        files = {f"rules.{index}": file(path) for index, path in enumerate(clean.rule_files(recipe.clean))}
        origins |= files
        config = _clean_config(recipe)
        check = partial(clean.check, config, allow_code=allow.code)
        nodes.append(Node("clean", clean, config, {role: role for role in [*sources, *files]}, check))
    model = "base"
    if recipe.finetune:
        if recipe.finetune.template.endswith(".jinja"):
            origins["template"] = origin.file(recipe.finetune.template)
        if recipe.finetune.init_adapter:
            origins["init"] = origin.adapter(recipe.finetune.init_adapter)
        origins |= {f"adapter.{index}": origin.adapter(other.path) for index, other in enumerate(recipe.merge.adapters)}
        nodes += _training(recipe, origins)
        model = "merge"
    quantized = {config.name: f"quantize-{config.name}" for config in recipe.quantize}
    if len(quantized) < len(recipe.quantize):
        raise RecipeError(
            "two entries of `quantize` make the same checkpoint", code="LK0109", where=recipe.name, next="keep one of them"
        )
    nodes += [Node(f"quantize-{config.name}", quantize, config, {"model": model}) for config in recipe.quantize]
    if recipe.export:
        nodes.append(_exporting(recipe, recipe.export, origins))
    if recipe.eval:
        nodes.append(_evaluation(recipe, model, quantized, origins, allow, file))
    if not nodes:
        raise UsageError(
            "the recipe asks for nothing", code="LK0108", where=recipe.name, next="add data, finetune, quantize, export or eval"
        )
    return Chain(origins, tuple(nodes))


def _clean_config(recipe: Recipe) -> clean.Config:
    assert recipe.data
    formats = tuple(source.format for source in recipe.data.sources)
    found = recipe.data.pairs
    return clean.Config(
        **dict(recipe.clean),
        split=recipe.data.split,
        seed=recipe.seed,
        formats=formats if any(formats) else (),
        score_field=found.rating if found else None,
        edited_field=found.edited if found else None,
    )


def _training(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Node]:
    config = recipe.finetune
    if not recipe.data or not config:
        raise UsageError(
            "finetune needs `data`",
            code="LK0108",
            where=f"recipe {recipe.name}",
            next="add data: {sources: [{path: data/*.jsonl}]}",
        )
    dataset = "clean"
    if config.objective != "sft" and recipe.data.pairs and _makes_pairs(recipe.data.pairs, config.objective):
        made = recipe.data.pairs.model_copy(update={"seed": recipe.seed, "template": config.template})
        base = {"base": "base"} if made.rejected == "generate" else {}
        yield Node("pairs", pairs, made, {"dataset": "clean", **base})
        dataset = "pairs"
    seeded = config if config.seed is not None else config.model_copy(update={"seed": recipe.seed})
    # A template of the user's own counts by its content, not by its path.
    more = {name: name for name in ("template", "init") if name in origins}
    check = partial(finetune.check, seeded, _folder_of(origins["base"]))
    yield Node("finetune", finetune, seeded, {"dataset": dataset, "base": "base", **more}, check)
    others = {name: name for name in origins if name.startswith("adapter.")}
    yield Node("merge", merge, recipe.merge, {"adapter": "finetune", "base": "base", **others})


def _makes_pairs(made: pairs.Config, objective: str) -> bool:
    """Whether pairs are to be made: kto takes ratings as they are."""
    return objective != "kto" or made.rating is None


def _exporting(recipe: Recipe, config: export.Config, origins: dict[str, Origin]) -> Node:
    inputs = {"model": "merge" if recipe.finetune else "base"}
    if recipe.data:
        inputs["dataset"] = "clean"
    if recipe.finetune:
        inputs |= {"base": "base", "adapter": "finetune"}
    if isinstance(config.imatrix, str):
        origins["imatrix"] = origin.file(config.imatrix)
        inputs["imatrix"] = "imatrix"
    base = origins["base"].ready
    check = partial(
        export.check,
        config,
        base.path if base else None,
        template=None if recipe.finetune else config.template,
        tuned=recipe.finetune is not None,
        lora=recipe.finetune is not None and recipe.finetune.method != "full" and not recipe.finetune.lora.dora,
        data=recipe.data is not None,
        grid=base.facts.get("gguf_types") if base else None,
    )
    return Node("export", export, config, inputs, check)


def _evaluation(
    recipe: Recipe,
    model: str,
    quantized: Mapping[str, str],
    origins: dict[str, Origin],
    allow: Allowed,
    file: Callable[[str], Origin],
) -> Node:
    if not recipe.data or not recipe.eval:
        raise UsageError(
            "eval needs `data`",
            code="LK0108",
            where=f"recipe {recipe.name}",
            next="add data: {sources: [{path: data/*.jsonl}]}",
        )
    config = recipe.eval
    inputs = {"dataset": "clean", "base": "base", **quantized}
    if recipe.finetune:
        # The adapter and its pairs tell where the model comes from.
        inputs |= {"merged": model, "adapter": "finetune"}
    if recipe.export:
        inputs["gguf"] = "export"
    files = evaluation_files(config, file)
    origins |= files
    rows = ["base", *(["merged"] if recipe.finetune else []), *quantized, *([config.endpoint.name] if config.endpoint else [])]
    check = partial(
        evaluation.check,
        config,
        rows=None if recipe.export else rows,
        folders=not (recipe.export or config.endpoint),
        allow_code=allow.code,
        allow_exec=allow.code_exec,
    )
    return Node("eval", evaluation, config, {**inputs, **{role: role for role in files}}, check)


def evaluation_files(config: settings.Config, file: Callable[[str], Origin] = origin.file) -> dict[str, Origin]:
    """What an evaluation reads beside models and data, by role; all of it counts by its content."""
    paths = {f"words.{index}": path for index, path in enumerate(config.sensitive)}
    if config.review:
        paths |= {f"ratings.{index}": path for index, path in enumerate(config.review.ratings)}
    if config.code and config.code.problems != "bundled":
        paths["problems"] = config.code.problems
    if config.tasks:
        from llmkit.engine import harness_tasks

        paths |= {f"task.{index}": str(path) for index, path in enumerate(harness_tasks.local_files(config.tasks))}
    found = {role: file(path) for role, path in paths.items()}
    if config.gate and config.gate.baseline and judging.is_folder(config.gate.baseline):
        found["baseline"] = origin.report(config.gate.baseline)
    return found


def _folder_of(found: Origin) -> Path | None:
    return found.ready.path if found.ready else None


def plan(chain: Chain, folder: Path, *, force: Sequence[str] = ()) -> list[Planned]:
    """A verdict for every node of the chain, in order; nothing is written.

    Args:
        chain: from `lay_out`.
        folder: the recipe's folder in the workspace.
        force: names of nodes to take for stale.
    """
    fingerprints = {name: found.fingerprint for name, found in chain.origins.items()}
    planned: list[Planned] = []
    for node in chain.nodes:
        inputs = {role: fingerprints[name] for role, name in node.inputs.items()}
        config = node.config.model_dump(mode="json")
        fingerprint = artifact.digest(node.step.VERB, node.step.REVISION, config, inputs)
        fingerprints[node.name] = fingerprint
        place = folder / node.name
        reason = "forced" if node.name in force else _why(node, artifact.load(place), fingerprint, inputs, planned)
        if not reason and node.step is evaluation:
            reason = _touched(node, planned)
        planned.append(Planned(node, place, fingerprint, inputs, reason))
    return planned


def _why(node: Node, old: Artifact | None, fingerprint: str, inputs: Mapping[str, str], before: list[Planned]) -> str:
    if old is None:
        return "not built yet"
    missing = [name for name, entry in old.manifest.files.items() if not _whole(old.path / name, entry)]
    if missing:
        return f"{missing[0]} is missing or damaged"
    stale = {one.node.name for one in before if not one.fresh}
    fed = {role: name for role, name in node.inputs.items() if name in stale}
    if old.fingerprint == fingerprint and not fed:
        return ""
    reasons = [*_changes(old.manifest.config, node.config.model_dump(mode="json"))]
    reasons += [f"its {role} ({name}) changes" for role, name in fed.items()]
    reasons += [f"its {role} changed" for role in inputs if role not in fed and old.manifest.inputs.get(role) != inputs[role]]
    reasons += [f"its {role} is gone" for role in old.manifest.inputs if role not in inputs]
    return "; ".join(reasons) or "llmkit's own step changed"


def _touched(node: Node, before: Sequence[Planned]) -> str:
    """Which input is not what was published any more: what is shipped is to be what was measured."""
    for one in before:
        found = artifact.load(one.folder) if one.node.name in node.inputs.values() else None
        if found and artifact.changed_since(found):
            return f"the files of {one.node.name} changed on this disk"
    return ""


def _whole(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(_flat(old)), dict(_flat(new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key} {before.get(key, 'unset')} → {after.get(key, 'unset')}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    targets: Sequence[str] | None = None,
    force: bool = False,
    allow: Allowed = NOTHING,
    report: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Run what is stale among `targets` (default: everything) and what they need.

    Args:
        recipe: the whole recipe.
        folder: its folder in the workspace; locked while this runs.
        targets: names of nodes.
        force: run the targets even where they are fresh.
        allow: what of a stranger's may be run.
        report: called as each node is found fresh or finished.

    Raises:
        LlmkitError: whatever a check or a step raises; what was published before stays.
    """
    with _locked(folder):
        chain = lay_out(recipe, allow=allow)
        names = [node.name for node in chain.nodes]
        wanted = chain.upstream(targets or names)
        forced = (targets or names) if force else ()
        for name in names:
            artifact.recover(folder / name)
        planned = [p for p in plan(chain, folder, force=forced) if p.node.name in wanted]
        if any(not p.fresh for p in planned):
            _check(chain, planned)
            fetched = _fetch(chain, planned, partial(lay_out, recipe, allow=allow))
            if fetched is not chain:
                # A hub model's fingerprint is its content, known only now.
                chain, planned = fetched, [p for p in plan(fetched, folder, force=forced) if p.node.name in wanted]
                _check(chain, planned)
        return list(_run_all(chain, planned, folder, report))


def _check(chain: Chain, planned: Sequence[Planned]) -> None:
    for one in planned:
        if not one.fresh:
            for role, name in one.node.inputs.items():
                found = chain.origins[name].ready if name in chain.origins else None
                if found and found.path.resolve() == one.folder.resolve():
                    raise UsageError(
                        f"{one.node.name} would replace the {role} it reads",
                        code="LK0107",
                        where=str(found.path),
                        next="name a copy of it",
                    )
            one.node.check()


def _fetch(chain: Chain, planned: Sequence[Planned], again: Callable[[], Chain]) -> Chain:
    needed = {name for p in planned if not p.fresh for name in p.node.inputs.values()}
    missing = [found for name, found in chain.origins.items() if name in needed and not found.ready]
    for found in missing:
        found.fetch()
    return again() if missing else chain


def _run_all(chain: Chain, planned: Sequence[Planned], folder: Path, report: Callable[[Done], None]) -> Iterator[Done]:
    have = {name: found.ready for name, found in chain.origins.items() if found.ready}
    for one in planned:
        started = time.perf_counter()
        if one.fresh:
            found = artifact.load(one.folder)
            assert found
            done = Done(one, found, 0.0)
        else:
            inputs = {role: have[name] for role, name in one.node.inputs.items()}
            progress.note(f"{one.node.name}: {one.reason}")
            found = build(one.node.step, one.node.config, inputs, folder=one.folder, fingerprint=one.fingerprint)
            done = Done(one, found, time.perf_counter() - started)
        have[one.node.name] = found
        report(done)
        yield done


def build(step: Any, config: BaseModel, inputs: Mapping[str, Artifact], *, folder: Path, fingerprint: str) -> Artifact:
    """Run one step into a staging folder beside `folder` and publish it there.

    A resumable step that was killed finds its own staging folder again, as long as its fingerprint is the same.
    """
    root = folder.parent / ".staging"
    staging = root / f"{folder.name}-{fingerprint[:16]}"
    for other in root.glob(f"{glob.escape(folder.name)}-{'[0-9a-f]' * 16}"):
        if other != staging or not getattr(step, "RESUMABLE", False):
            shutil.rmtree(other)
    staging.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        facts = step.run(config, inputs, staging)
    except BaseException:
        # What a failed step has written helps no one, and may be what filled the disk.
        if not getattr(step, "RESUMABLE", False):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    facts = {**facts, "wall_seconds": round(time.perf_counter() - started, 3)}
    manifest = Manifest(
        step.KIND,
        step.VERB,
        fingerprint,
        config.model_dump(mode="json"),
        {role: given.fingerprint for role, given in inputs.items()},
        facts=facts,
    )
    published = artifact.publish(staging, folder, manifest)
    if not any(root.iterdir()):
        root.rmdir()
    return published


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                "another llmkit is working in this folder",
                code="LK0110",
                where=str(folder),
                next="wait for it, or use another --workspace",
            ) from error
        yield
