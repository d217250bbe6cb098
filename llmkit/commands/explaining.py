"""`llmkit explain`: a recipe's key, or an error by its code."""

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmkit.commands.result import Result, width
from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.schema import Key

_WIDEST = 100  # characters of a line that is read with ease


def explain(what: str) -> Result:
    """A paragraph on an error's code, or what a key of the recipe means and takes.

    Raises:
        UsageError: no such code or key; names the nearest.
    """
    if re.fullmatch(r"(?i)LK\d{4}", what):
        return explain_code(what.upper())
    return explain_key(what)


def explain_code(code: str) -> Result:
    """A code's entry in the catalogue.

    Raises:
        UsageError: there is no such code.
    """
    from llmkit import catalogue

    entry = catalogue.find(code)
    if entry is None:
        raise UsageError(
            "there is no such error code", code="LK0115", where=code, next="a code stands in an error's first line"
        )
    text = textwrap.fill(entry.text, min(width(), _WIDEST), break_long_words=False, break_on_hyphens=False)
    return Result(f"{entry.code}: {entry.title}\n\n{text}", asdict(entry))


def explain_key(key: str) -> Result:
    """A key, or a section's keys, from the schema.

    Raises:
        UsageError: no such key, or several; names them.
    """
    from llmkit import schema

    found = schema.find(key)
    inner = schema.below(found.path) if found.section else []
    data = {**_plain(found), "keys": [_plain(one) for one in inner]}
    return Result("\n".join([*_lines(found), *_listed(inner)]), data)


def _lines(found: "Key") -> Iterator[str]:
    yield f"{found.path}: {found.description}"
    yield ""
    yield f"type      {found.type}"
    if found.choices:
        yield f"choices   {', '.join(found.choices)}"
    if found.bounds:
        yield f"bounds    {found.bounds}"
    if found.required:
        yield "default   none: it must be given" + (" in each item of the list" if found.listed else "")
    elif not (found.section and found.default):
        yield f"default   {json.dumps(found.default, ensure_ascii=False)}"
    if found.listed:
        yield f"stands    in each item of {found.listed}"
    if not found.section or "list" in found.type:
        yield f"example   --set {shlex.quote(found.assignment)}"


def _listed(keys: Sequence["Key"]) -> Iterator[str]:
    """The keys of a section, a line each."""
    width = max((len(key.path) for key in keys), default=0)
    yield from [""] if keys else []
    for key in keys:
        default = "required" if key.required else "…" if key.section else json.dumps(key.default, ensure_ascii=False)
        yield f"{key.path:<{width}}  {default:<10}  {key.description}"


def _plain(found: "Key") -> dict[str, Any]:
    """A key as JSON has it; what must be given has no default."""
    told = asdict(found) | {"choices": list(found.choices), "required": found.required, "assignment": found.assignment}
    return {name: value for name, value in told.items() if name != "default" or not found.required}
