"""What README and docs/ show, read off their Markdown: blocks, commands, options. Knows Markdown; runs nothing."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml

from llmkit.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_EXIT = re.compile(r"#.*exit code (\d)")


class Shown(NamedTuple):
    """A command of a console block: its words after the prompt, and the exit code that the block promises."""

    page: str
    words: list[str]
    exit_code: int


def pages() -> dict[str, str]:
    """README, README.zh and the pages of docs/ in the order of the site, by path; whatever is not on the site comes last."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    known = [DOCS / name for name in leaves(nav)]
    known += sorted(set(DOCS.rglob("*.md")) - set(known))
    return {
        str(path.relative_to(ROOT)): path.read_text("utf-8") for path in (ROOT / "README.md", ROOT / "README.zh.md", *known)
    }


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in a language ("" is none), without their indentation."""
    return [
        re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE) for found in _BLOCK.finditer(text) if found[2] == language
    ]


def shown(page: str, text: str) -> Iterator[Shown]:
    """The commands of a page's console blocks."""
    for block in blocks(text, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                promised = _EXIT.search(line)
                yield Shown(page, shlex.split(line[2:], comments=True), int(promised[1]) if promised else 0)


def mentioned(text: str) -> list[list[str]]:
    """Every `llmkit …` of a page, in whatever block or in a line; the words after `llmkit`."""
    lines = [
        line for language in ("console", "sh", "ini", "yaml", "json") for line in _lines("\n".join(blocks(text, language)))
    ]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _BLOCK.sub("", text))
    found = [match[1] for one in (*lines, *spans) if (match := re.search(r"(?:^|[\s/])llmkit ((?!\[).*)", one))]
    return [_words(one) for one in found]


def options(text: str) -> set[str]:
    """Every option that stands alone between backticks."""
    return set(re.findall(r"`(--[a-z][\w-]*)[^`]*`", _BLOCK.sub("", text)))


@cache
def commands() -> dict[str, Any]:
    """Every command of the real thing, by what one types for it."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {one}": each for one, each in inner.items()} if inner else {name: command}
    return found


def opts(command: Any) -> set[str]:
    return {name for one in command.params for name in one.opts if name.startswith("-")} | {"--help"}


def command_of(words: list[str]) -> str:
    """The command that words begin with; "" where there is none."""
    return next((name for size in (2, 1) if (name := " ".join(words[:size])) in commands()), "")


def leaves(nav: Any) -> Iterator[str]:
    for item in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(item, str):
            yield item
        else:
            yield from leaves(item)


def _lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quote that the page leaves open
        return line.split()
