"""`llmkit push`: an artifact with its card to a hub."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import artifact, hubs, origin, pipeline, progress, pushing, recipe
from llmkit.artifact import Artifact, Kind
from llmkit.commands import workspace
from llmkit.commands.result import Result
from llmkit.errors import LlmkitError, UsageError
from llmkit.pushing import Known, Pack
from llmkit.recipe import Recipe
from llmkit.report import lineage
from llmkit.report.gguf import visible

_HUBS = {"": "huggingface", "modelscope": "modelscope"}


def push(path: Path, to: str, *, private: bool, yes: bool) -> Result:
    """Upload an artifact's files and its card; without `yes` only show what would be sent, for nothing can be unsent.

    Args:
        path: the artifact's folder.
        to: OWNER/NAME, or modelscope:OWNER/NAME.
        private: a repository that others do not see, where it is made.
        yes: really send.

    Raises:
        UsageError: no artifact, one that is not pushed, or what is no repository's name.
        FidelityError: files that are not those that were published.
        MachineError: no token, or a hub that does not take it.
    """
    scheme, _, name = to.rpartition(":")
    if scheme not in _HUBS or not origin.HUB_ID.fullmatch(name):
        raise UsageError("this names no repository", code="LK0301", where=to, next="say OWNER/NAME or modelscope:OWNER/NAME")
    found = artifact.expect(path, *Kind)
    made = pushing.pack(found, name, _known(found))
    shown = _shown(made, to, private=private)
    data = _told(made, to, private=private)
    if not yes:
        return Result("\n".join([*shown, "nothing was sent; look the list over, then add --yes"]), {**data, "sent": False})
    for line in shown:
        progress.note(line)
    hub = importlib.import_module(f"llmkit.hubs.{_HUBS[scheme]}")
    noun = "data set" if made.repo_type == "dataset" else "model"
    repo = hubs.Repo(name, "main", made.repo_type, noun, f"push to {to}")
    message = f"{found.manifest.kind} {found.fingerprint[:16]}, by llmkit"
    with progress.track(f"uploading to {to}", total=None):
        done = hub.publish(repo, hubs.Parcel(made.files, message, private, made.licence))
    lines = [f"pushed to {done.url}"]
    if done.others:
        lines.append(f"there before and not of this artifact, left as they are: {', '.join(map(visible, done.others))}")
    return Result("\n".join(lines), {**data, "sent": True, "url": done.url, "others": list(done.others)})


def _shown(made: Pack, to: str, *, private: bool) -> list[str]:
    who = "private" if private else "public, unless it is there and private already"
    lines = [f"to {to}, a {made.repo_type} repository ({who}):"]
    sizes = {visible(name): _size(given) for name, given in made.files.items()}
    width = max(map(len, sizes))
    lines += [f"  {name:<{width}}  {_readable(size):>9}" for name, size in sizes.items()]
    for why in dict.fromkeys(made.kept.values()):
        lines.append(f"stays here ({why}): {', '.join(visible(name) for name, one in made.kept.items() if one == why)}")
    if made.repo_type == "model":
        base = f"the base, {visible(made.base)}" if made.base else "the base"
        lines.append(
            f"licence: {visible(made.licence)}, that of {base}; see that you may pass it on"
            if made.licence
            else f"licence: that of {base}, which llmkit does not know; add it to the card"
        )
    else:
        lines.append("licence: that of the sources, which llmkit does not know; add it to the card")
    return lines


def _told(made: Pack, to: str, *, private: bool) -> dict[str, Any]:
    return {
        "to": to,
        "repo_type": made.repo_type,
        "private": private,
        "files": {name: _size(given) for name, given in made.files.items()},
        "kept": dict(made.kept),
        "licence": made.licence,
        "base": made.base,
        "card": made.card,
    }


def _readable(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _size(given: Path | bytes) -> int:
    return len(given) if isinstance(given, bytes) else given.stat().st_size


def _known(found: Artifact) -> Known:
    """What lies beside the artifact, and the recipe that made it, where it is still the same."""
    run = found.path.resolve().parent
    beside = [one for one in map(lineage.read, workspace.folders(run)) if one and one.path != found.path.resolve()]
    reports = sorted((one for one in beside if one.manifest.kind is Kind.REPORT), key=_age, reverse=True)
    # Demo models and those made of GGUF files: bases that have a manifest of their own.
    cached = [one for one in map(lineage.read, workspace.cached()) if one]
    others = [*(one for one in beside if one.manifest.kind is not Kind.REPORT), *cached]
    given = _recipe(run, found)
    if given is None:
        return Known([*reports, *others])
    name, overrides, chosen = given
    base = origin.model(chosen.model).ready
    sources = chosen.data.sources if chosen.data else ()
    ids = [one.path.removeprefix("hub:").partition("@")[0] for one in sources if one.path.startswith("hub:")]
    shown = "".join(f" --set {one}" for one in overrides if "/" not in one)
    command = f"llmkit run {Path(name).name}{shown}"
    return Known([*reports, *others, *([base] if base else [])], command, ids)


def _age(one: Artifact) -> float:
    return (one.path / artifact.MANIFEST).stat().st_mtime


def _recipe(run: Path, found: Artifact) -> tuple[str, Sequence[str], Recipe] | None:
    """The recipe last run in this workspace, if it would make just this artifact."""
    try:
        last = json.loads((run.parent / "last.json").read_text("utf-8"))
        name, overrides = str(last["recipe"]), [str(one) for one in last["set"]]
        chosen = recipe.load(recipe.find(name), overrides)
        planned = pipeline.plan(pipeline.lay_out(chosen), run)
    except (LlmkitError, OSError, ValueError, KeyError, TypeError):  # none, or changed or moved since
        return None
    return (name, overrides, chosen) if any(one.fingerprint == found.fingerprint for one in planned) else None
