"""`llmkit run`, a step of a recipe with what it needs, and `clean --explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import artifact, origin, pipeline, progress, recipe
from llmkit.artifact import Kind
from llmkit.commands.remembered import recall, remember
from llmkit.commands.result import Result, judged, report_of, shown
from llmkit.errors import UsageError
from llmkit.pipeline import Allowed, Done, Planned
from llmkit.recipe import Recipe


def run(name: str, overrides: Sequence[str], workspace: Path, *, force: bool, allow: Allowed) -> Result:
    """The whole chain of a recipe."""
    chosen = recipe.load(recipe.find(name), overrides)
    remember(workspace, name, overrides)
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
    given, kept = recall(workspace, name, overrides)
    chosen = recipe.load(recipe.find(given), [*kept, *flags])
    remember(workspace, given, [*kept, *flags] if verb in ("clean", "finetune", "merge") else kept)
    targets = [node.name for node in pipeline.lay_out(chosen).nodes if verb == node.step.VERB]
    if not targets:
        raise UsageError(
            f"the recipe {chosen.name} has no {verb} step",
            code="LK0108",
            where=given,
            next=f"add a `{verb}:` section, or use --input",
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
        chosen, kept = recall(workspace, name, overrides)
        loaded = recipe.load(recipe.find(chosen), kept)
        dataset = workspace / loaded.name / "clean"
        sources = [source.path for source in loaded.data.sources] if loaded.data else []
    else:
        sources = [given] if given else []
    made = artifact.expect(dataset, Kind.DATASET)
    if made.manifest.step != clean.VERB:
        raise UsageError(
            f"made by {made.manifest.step}, not by clean",
            code="LK0112",
            where=str(dataset),
            next="name what `llmkit clean` wrote",
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


def _execute(chosen: Recipe, workspace: Path, *, targets: Sequence[str] | None, force: bool, allow: Allowed) -> Result:
    done = pipeline.execute(chosen, workspace / chosen.name, targets=targets, force=force, allow=allow, report=_tell)
    data: dict[str, Any] = {"recipe": chosen.name, "folder": str(workspace / chosen.name)}
    data["steps"] = [_outcome(one) for one in done]
    last = done[-1].artifact
    data |= report_of(last)
    lines = shown(last)
    ran = sum(one.seconds > 0 for one in done)
    lines.append(f"{chosen.name}: {ran} of {len(done)} steps run, the rest was fresh; {last.path}")
    return Result("\n".join(lines), data, judged(last.facts.get("gate")))


def _tell(done: Done) -> None:
    state = f"done in {done.seconds:.1f} s" if done.seconds else "fresh"
    progress.note(f"{done.planned.node.name}: {state}")


def _outcome(done: Done) -> dict[str, Any]:
    return {**verdict(done.planned), "seconds": done.seconds, "facts": dict(done.artifact.facts)}


def verdict(one: Planned) -> dict[str, Any]:
    return {
        "name": one.node.name,
        "fresh": one.fresh,
        "reason": one.reason,
        "path": str(one.folder),
        "fingerprint": one.fingerprint,
    }
