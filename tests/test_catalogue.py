"""Every error has a code, every code a paragraph, and what the paragraphs tell one to type is there."""

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import llmkit
from llmkit import catalogue, cli, recipe, schema
from llmkit.catalogue import AREAS, Entry
from llmkit.commands.explaining import explain_code
from llmkit.errors import LlmkitError, UsageError

CODE = re.compile(r"LK\d{4}")
PACKAGE = Path(llmkit.__file__).parent
ENTRIES = catalogue.all_entries()
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.code)
QUOTED = re.compile(r"`([^`]+)`")
KEY = re.compile(r"(?:data|clean|finetune|merge|quantize|export|eval)(?:\.[a-z_]+)+")
FILES = (".json", ".jsonl", ".md", ".yaml", ".txt")


@functools.cache
def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@functools.cache
def kinds() -> frozenset[str]:
    """The names of LlmkitError and of all that derives from it."""
    bases = {
        node.name: [name_of(base) for base in node.bases]
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {LlmkitError.__name__}
    while more := {name for name, above in bases.items() if found & set(above)} - found:
        found |= more
    return frozenset(found)


def made() -> Iterator[tuple[str, ast.expr | None]]:
    """Where an error is made, and what it is given as its code."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in kinds():
                code = next((one.value for one in node.keywords if one.arg == "code"), None)
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", code


@functools.cache
def written() -> frozenset[str]:
    """Every code that stands as a text of its own in the package: given to an error, or in a table or a name that is."""
    return frozenset(
        node.value
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    )


def test_there_are_errors_to_look_at() -> None:
    assert sum(1 for _ in made()) > 450
    assert {"PeerLostError", "RecipeError", "GateError"} <= kinds()


def test_every_error_is_made_with_a_code() -> None:
    assert [place for place, code in made() if code is None] == []


def test_a_code_is_written_down_or_another_errors_own() -> None:
    """A name is one that the same package fills with a code (`written` has it); `error.code` hands one on."""
    odd = [
        place
        for place, code in made()
        if isinstance(code, ast.Constant) and not (isinstance(code.value, str) and CODE.fullmatch(code.value))
    ]
    allowed = (ast.Constant, ast.Attribute, ast.Name, ast.IfExp, ast.Subscript)
    assert odd == []
    assert [place for place, code in made() if not isinstance(code, allowed)] == []
    assert [place for place, code in made() if isinstance(code, ast.Attribute) and code.attr != "code"] == []


def test_every_code_of_the_package_has_an_entry() -> None:
    assert written() - {entry.code for entry in ENTRIES} == set()


def test_every_entry_is_of_an_error_that_exists() -> None:
    assert {entry.code for entry in ENTRIES} - written() == set()


def test_codes_stand_in_the_file_of_their_area() -> None:
    for digits, area in AREAS.items():
        file = (PACKAGE / "catalogue" / f"{area}.toml").read_text("utf-8")
        assert {code[2:4] for code in re.findall(r"^\[(.*)\]$", file, re.MULTILINE)} <= {digits}
    assert {path.stem for path in (PACKAGE / "catalogue").glob("*.toml")} == set(AREAS.values())


def test_entries_come_in_order_and_are_found_by_code() -> None:
    codes = [entry.code for entry in ENTRIES]
    assert codes == sorted(codes)
    assert all(catalogue.find(entry.code) is entry for entry in ENTRIES)
    assert catalogue.find("LK0000") is None


def test_no_two_entries_say_the_same() -> None:
    assert len({entry.title.lower() for entry in ENTRIES}) == len({entry.text for entry in ENTRIES}) == len(ENTRIES)


@each_entry
def test_an_entry_is_a_title_and_a_paragraph_of_some_sentences(entry: Entry) -> None:
    assert CODE.fullmatch(entry.code)
    assert 10 <= len(entry.title) <= 75
    assert not entry.title.endswith(".")
    sentences = re.split(r"[.?!](?=\s)", entry.text)
    assert 2 <= len(sentences) <= 7
    assert entry.text.endswith((".", ".)"))
    assert entry.text.count("`") % 2 == 0
    assert not re.search(r"/(home|root|tmp|work|usr)\b|https?://(?!localhost)", entry.text)


@each_entry
def test_the_commands_of_an_entry_exist(entry: Entry) -> None:
    for quoted in QUOTED.findall(entry.text):
        words = shlex.split(quoted)
        if words[0] == "llmkit":
            _parse(words[1:])
        elif words[0].startswith("--"):
            assert words[0] in _options(), quoted


@each_entry
def test_the_recipe_keys_of_an_entry_exist(entry: Entry) -> None:
    for quoted in QUOTED.findall(entry.text):
        for key in KEY.findall(quoted):
            if not quoted.endswith(FILES):
                schema.find(key)


@each_entry
def test_the_overrides_of_an_entry_fit_the_quickstart(entry: Entry) -> None:
    for quoted in QUOTED.findall(entry.text):
        words = shlex.split(quoted)
        for option, value in pairwise(words):
            if option == "--set" and value.isascii() and not re.search("[A-Z]{3}", value):
                recipe.load(recipe.find("quickstart"), [value])


def test_explain_prints_an_entry() -> None:
    result = CliRunner().invoke(cli.app, ["explain", "lk0103"], env={"COLUMNS": "60"})
    entry = catalogue.find("LK0103")
    assert entry
    assert result.exit_code == 0
    assert result.stdout.startswith(f"LK0103: {entry.title}\n\n")
    assert " ".join(result.stdout.split("\n\n")[1].split()) == entry.text
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_an_unknown_code_is_an_error_with_a_code_of_its_own() -> None:
    with pytest.raises(UsageError) as caught:
        explain_code("LK0000")
    assert (caught.value.code, caught.value.where) == ("LK0115", "LK0000")


def _parse(words: list[str]) -> None:
    """As the command line would: names of commands and options, types and what is required; runs nothing."""
    command: Any = typer.main.get_command(cli.app)
    path = ["llmkit"]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, words
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if words and words[-1].startswith("--"):  # an option that is only named, or one without a value
        assert words[-1] in {"--help", *(option for one in command.params for option in one.opts)}, words
        words = words[:-1]
    if words:  # else it is only named
        command.make_context(" ".join(path), list(words))


@functools.cache
def _options() -> frozenset[str]:
    found = set()
    waiting: list[Any] = [typer.main.get_command(cli.app)]
    while waiting:
        command = waiting.pop()
        found.update(option for parameter in command.params for option in parameter.opts)
        waiting += getattr(command, "commands", {}).values()
    return frozenset({*found, "--help"})
