"""`llmkit init`: a first recipe, from a few answers or from the data."""

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import recipe
from llmkit.commands.recipes import planning, running
from llmkit.commands.result import Result
from llmkit.errors import UsageError
from llmkit.recipe import Recipe

if TYPE_CHECKING:
    from llmkit.starting.choices import Choice

Ask = Callable[[str, str], str]
"""Puts a question to whoever sits at the terminal, with what an empty answer means."""

_BASE = "demo:gemma-3-270m"  # small, bilingual, and here without a hub
_WHICH = "Which model? (a hub id, modelscope:ID, ./folder, demo:gemma-3-270m)"
_WHERE = "Where is your data? (a file, a folder, data/*.jsonl)"
# What `init` offers: job → (what it is, the bundled recipe to start from; "" writes one for your own data).
JOBS: Mapping[str, tuple[str, str]] = {
    "dialogues": ("a chat model from my own dialogues or preference pairs", ""),
    "customer-service": ("customer service, its logs cleaned at full strength", "customer-service"),
    "domain": ("a model of one domain (Llama 2 7B, INT8 and 4 bits)", "llama2-7b-domain"),
    "code": ("a code assistant, measured by pass@k", "code-assistant"),
    "edge": ("a small model for an edge board", "phi3-mini-edge"),
    "export": ("GGUF files of a model as it is", "gemma2-27b-gguf"),
    "ci": ("a gate for CI", "ci-gate"),
}


def init(file: Path, data: str | None, model: str | None, *, force: bool, ask: Ask | None) -> Result:
    """Write a commented recipe: for the data given, or after a few questions where `ask` can put them.

    Raises:
        UsageError: there is neither data nor a terminal to ask on; or the file is there and `force` is not said.
        DataError: the data is not there, or cannot be read.
    """
    _free(file, force=force)  # before any question
    if data is None and ask is None:
        raise UsageError(
            "there is no terminal to ask on", code="LK0155", next="say --from DATA --model NAME, as --from data/chats.jsonl"
        )
    job = "dialogues" if data is not None or ask is None else _choice(ask, "What is it for?", _offered(JOBS, 0))
    start = JOBS[job][1]
    if start:
        assert ask
        return _from_bundled(start, file, model, ask=ask, force=force)
    return _from_data(file, data, model, ask=ask, force=force)


def _from_bundled(start: str, file: Path, model: str | None, *, ask: Ask, force: bool) -> Result:
    from llmkit.starting import writing

    path = recipe.find(start)
    shipped = recipe.load(path)
    base = model or ask(_WHICH, shipped.model)
    source = ask(_WHERE, shipped.data.sources[0].path) if shipped.data else ""
    shown = shlex.quote(str(file))
    text = writing.replaced(path.read_text("utf-8"), name=_name(file, start), model=base, path=source, file=shown)
    made = writing.write(file, text, force=force)
    return _written(file, made, f"from the recipe {start}", {})


def _from_data(file: Path, data: str | None, model: str | None, *, ask: Ask | None, force: bool) -> Result:
    """`data` is None where `ask` is to find it out."""
    from llmkit.starting import choices, writing
    from llmkit.starting.survey import survey

    machine = "laptop"
    if data is None:
        assert ask is not None
        data = ask(_WHERE, "data/*.jsonl")
        seen = survey(data)  # before further questions: it may not be there
        model = model or ask(_WHICH, _BASE)
        machine = _choice(ask, "Which machine trains?", {name: one.text for name, one in choices.MACHINES.items()})
    else:
        seen = survey(data)
    base = model or _BASE
    why = "the base you named" if model else "small, bilingual, and needs no hub; --model names another"
    found = choices.choose(seen, path=data, model=base, why=why, machine=machine)
    text = writing.text(
        _name(file, "mine"), f"A chat model on {base} from {data}, as a tested GGUF file.", found, run=running(file)
    )
    made = writing.write(file, text, force=force)
    told = f"{seen.records:,} records ({seen.format}; {', '.join(seen.languages)}), {_objective(found)}"
    return _written(file, made, told, {one.key: {"value": one.value, "reason": one.reason} for one in found})


def _objective(found: Sequence["Choice"]) -> str:
    return next(str(one.value) for one in found if one.key == "finetune.objective")


def _written(file: Path, made: Recipe, told: str, choices: Mapping[str, Any]) -> Result:
    data = {"file": str(file), "recipe": made.name, "choices": choices, "next": planning(file)}
    return Result(f"wrote {file}: {told}\nnext: {planning(file)}", data)


def _free(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        raise UsageError(
            "the file is there already", code="LK0152", where=str(file), next="name another one, or --force to replace it"
        )


def _name(file: Path, otherwise: str) -> str:
    """A recipe's name: the file's, unless that is the one that every folder has."""
    stem = re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")
    return stem[:100] if stem and file.stem != "llmkit" else otherwise


def _offered(jobs: Mapping[str, tuple[str, str]], part: int) -> dict[str, str]:
    return {name: texts[part] for name, texts in jobs.items()}


def _choice(ask: Ask, question: str, offered: Mapping[str, str]) -> str:
    """One of `offered`, by its name or its number; asks again until it is one, and the first for an empty answer."""
    names = list(offered)
    width = max(map(len, names))
    listed = "\n".join(f"  {number}  {name:<{width}}  {text}" for number, (name, text) in enumerate(offered.items(), 1))
    shown = f"{question}\n{listed}\n"
    while True:
        answer = ask(shown, names[0]).strip().lower()
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        begun = [name for name in names if answer and name.startswith(answer)]
        if near := begun or difflib.get_close_matches(answer, names, n=1, cutoff=0.8):
            return near[0]
        shown = f"{answer[:40]!r} is none of {', '.join(names)}. Which?"
