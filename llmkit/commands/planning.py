"""`llmkit plan`: a verdict and a reason for every step."""

from collections.abc import Sequence
from pathlib import Path

from llmkit import pipeline, recipe
from llmkit.commands.remembered import recall
from llmkit.commands.result import Result
from llmkit.commands.running import verdict


def plan(name: str | None, overrides: Sequence[str], workspace: Path) -> Result:
    """A verdict and a reason for every step; nothing is run, fetched or remembered."""
    given, kept = recall(workspace, name, overrides)
    chosen = recipe.load(recipe.find(given), kept)
    chain = pipeline.lay_out(chosen)
    planned = pipeline.plan(chain, workspace / chosen.name)
    width = max(len(one.node.name) for one in planned)
    missing = [found.label for found in chain.origins.values() if not found.ready]
    lines = [f"{one.node.name:<{width}}  {'fresh' if one.fresh else f'runs: {one.reason}'}" for one in planned]
    lines += [f"{'':<{width}}  to be fetched first: {label}" for label in missing]
    return Result("\n".join(lines), {"recipe": chosen.name, "steps": [verdict(one) for one in planned], "to_fetch": missing})
