"""Fills the generated parts of the pages beside it: options, recipe keys, formats, rules, recipes and error codes.

    python -m docs.generate

A page says where a part goes, and this script writes what stands between the marks:

    <!-- generated: options finetune -->
    <!-- end -->

The parts are committed, so that they can be read where no site is built; tests/test_docs.py fails where one is stale.
Knows the command line and the schemas; every word comes from them.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- generated: ([\w-]+)((?: [\w.-]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
_VALUES = {int: "N", float: "NUMBER", Path: "PATH", list[Path]: "PATH"}


def main() -> None:
    for page in pages():
        text = page.read_text("utf-8")
        filled = fill(text)
        if filled != text:
            page.write_text(filled, "utf-8")
            print(page.relative_to(DOCS))


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def fill(text: str) -> str:
    """`text` with each generated part as it is to be today. Raises KeyError for a part that no one makes."""
    return _PART.sub(lambda mark: f"{mark[1]}\n{PARTS[mark[2]](*mark[3].split())}\n\n{mark[4]}", text)


def commands() -> dict[str, Any]:
    """Every command by what one types for it, as "recipes list"."""
    return dict(_walk(typer.main.get_command(_app()), ()))


def options(*words: str) -> str:
    """The arguments and options of one command."""
    command = commands()[" ".join(words)]
    rows = [(_spelling(one), _default(one), prose(_meaning(one))) for one in command.params if not one.hidden]
    return table(("`llmkit " + " ".join(words) + "`", "default", "what it means"), rows)


def keys(*sections: str) -> str:
    """The recipe keys of sections, and of the sections in them; `.` is the top of a recipe and no deeper."""
    from llmkit import schema

    wanted = [
        key
        for key in schema.keys()  # noqa: SIM118 - a module, no mapping
        if any("." not in key.path if one == "." else f"{key.path}.".startswith(f"{one}.") for one in sections)
    ]
    seen: dict[tuple[str, ...], str] = {}
    rows = []
    for key in wanted:
        first = seen.setdefault(key.choices, key.path)
        value = f"as `{first}`" if len(key.choices) > 10 and first != key.path else _value(key)
        rows.append((f"`{key.path}`", value, _plain_default(key), prose(key.description)))
    return table(("key", "value", "default", "what it means"), rows)


def formats() -> str:
    """The dialogue formats that are read."""
    from llmkit.data.formats import FORMATS

    return table(("format", "a record"), [(f"`{form.name}`", f"`{form.shape}`") for form in FORMATS])


def rules() -> str:
    """The rules of cleaning, in the order that they are applied."""
    from llmkit.data.rules import RULES

    return table(("rule", "about"), [(f"`{name}`", about) for name, about in RULES.items()])


def recipes() -> str:
    """The recipes that ship, each with the first line of its file."""
    from llmkit.recipe import bundled

    heads = {name: path.read_text("utf-8").partition("\n")[0].lstrip("# ") for name, path in bundled().items()}
    return table(("recipe", "what it is for"), [(f"`{name}`", prose(head)) for name, head in heads.items()])


def codes(area: str) -> str:
    """The errors of an area ("02"), each a heading that can be linked to."""
    from llmkit import catalogue

    found = [entry for entry in catalogue.all_entries() if entry.code.startswith(f"LK{area}")]
    return "\n\n".join(
        f"### {entry.code}\n\n**{prose(entry.title)}.** {prose(' '.join(entry.text.split()))}" for entry in found
    )


PARTS: Mapping[str, Callable[..., str]] = {
    "options": options,
    "keys": keys,
    "formats": formats,
    "rules": rules,
    "recipes": recipes,
    "codes": codes,
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prose(text: str) -> str:
    """Plain text as Markdown that shows it as it is; what stands between backticks is code already."""
    parts = text.split("`")
    return "`".join(part if number % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for number, part in enumerate(parts))


@cache
def _app() -> Any:
    from llmkit.cli import app

    return app


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, one in command.commands.items():
        yield from _walk(one, (*path, name))


def _spelling(one: Any) -> str:
    """An argument as its metavar, an option with the value it takes."""
    if one.param_type_name == "argument":
        return f"`{one.metavar or one.name.upper()}`"
    value = "" if one.is_flag else f" {one.metavar or _VALUES.get(one.type_descriptor.annotation, 'TEXT')}"
    return ", ".join(f"`{name}{value}`" for name in one.opts)


def _default(one: Any) -> str:
    if one.required:
        return "required"
    return f"`{one.default}`" if one.default not in (None, False, ()) else ""


def _meaning(one: Any) -> str:
    variable = f" Also from the environment variable `{one.envvar}`." if one.envvar else ""
    return f"{one.help}{variable}"


def _value(key: Any) -> str:
    """The choices, else the type; with bounds."""
    kind = ", ".join(f"`{choice}`" for choice in key.choices) if key.choices else key.type
    if key.choices and key.type.startswith("list"):
        kind = f"list of {kind}"
    return f"{kind}, {key.bounds}" if key.bounds else kind


def _plain_default(key: Any) -> str:
    if key.required:
        return "required"
    # A section's default is that of its keys, which follow.
    if key.default in (None, [], {}) or (key.section and isinstance(key.default, dict)):
        return ""
    return f"`{key.default if isinstance(key.default, str) else json.dumps(key.default, ensure_ascii=False)}`"


if __name__ == "__main__":
    main()
