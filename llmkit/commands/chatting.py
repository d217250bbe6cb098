"""`llmkit chat`: which artifacts talk, and how. The talk itself streams, and is `llmkit.serve.chat.repl`'s."""

from contextlib import ExitStack
from pathlib import Path

from llmkit import progress
from llmkit.commands.result import Result

MOST_TOKENS = 512  # of an answer, unless --max-tokens says otherwise


def chat(
    reference: str | None,
    versus: str | None,
    workspace: Path,
    *,
    base: str | None,
    context: int | None,
    system: str | None,
    json_: bool,
    quiet: bool,
    **settings: object,
) -> Result:
    """Talk to an artifact, or to two that are asked the same; streams, and returns nothing to print.

    `reference` and `versus` are as `opening.find` takes them; no reference is what the last run in `workspace` would ship.
    `settings`: max_tokens, temperature, top_p and seed, None for the default. `quiet`: no greeting and no speed.

    Raises:
        UsageError: nothing that can talk, or a setting out of its range.
        DataError: from a pipe, a message that does not fit.
        MachineError: the runtime failed.
    """
    from llmkit.serve import opening
    from llmkit.serve.chat import params, repl
    from llmkit.serve.speaker import Wish

    given = [f"{name}={value}" for name, value in settings.items() if value is not None]
    wish = params.changed(Wish(max_tokens=MOST_TOKENS, temperature=0.0), given)
    found = [opening.find(reference, base=base) if reference else opening.latest(workspace)]
    found += [opening.find(versus, base=base)] if versus else []
    with ExitStack() as open_ones:
        speakers = []
        for one in found:
            progress.note(f"loading {one.name} ({one.path})")
            speakers.append(open_ones.enter_context(opening.open_speaker(one, context=context)))
        repl.chat(speakers, wish, system=system or "", as_json=json_, quiet=quiet)
    return Result("", {})
