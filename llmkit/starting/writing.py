"""A commented recipe as text, and onto the disk. Knows YAML and files; chooses nothing."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import recipe
from llmkit.errors import MachineError, UsageError
from llmkit.starting.choices import Choice

_COLUMN = 38  # where comments begin
_PLAIN = re.compile(r"(?:\.{0,2}/)?[A-Za-z_][\w./*-]*")  # a text that YAML reads as itself
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}


def text(name: str, title: str, choices: Sequence[Choice], *, run: str) -> str:
    """A recipe of these lines, each with its reason; `run` is the command that the header names."""
    # A path may hold a line feed, and a comment must not.
    lines = [
        f"# {_one_line(title)}",
        f"#   {_one_line(run)}",
        "# Written by `llmkit init`; `llmkit explain KEY` tells what a key means and takes.",
    ]
    lines.append(f"name: {_value(name)}")
    section = ""
    for choice in choices:
        above, _, key = choice.key.rpartition(".")
        if above != section and above:
            lines.append(f"{above}:")
        section = above
        lines.append(_commented(f"{'  ' if above else ''}{key}: {_value(choice.value)}", choice.reason))
    return "\n".join(lines) + "\n"


def replaced(original: str, *, name: str, model: str, path: str, file: str) -> str:
    """A bundled recipe's text with a name, a base and a source of your own; its comments stay, and name `file`."""
    old = re.search(r"(?m)^name: (\S+)", original)
    found = re.sub(rf"(?m)^(#.*llmkit (?:run|plan) ){old[1]}\b", lambda said: said[1] + file, original) if old else original
    for start, value in (("name: ", name), ("model: ", model)):
        found = _line(found, start, value)
    return _line(found, "  sources: ", [{"path": path}]) if path else found


def _line(original: str, start: str, value: Any) -> str:
    """The text with another value on the first line that begins so; the comment on it was about the old one, and goes."""
    return re.sub(rf"(?m)^({start}).*$", lambda found: f"{found[1]}{_value(value)}", original, count=1)


def write(file: Path, content: str, *, force: bool) -> recipe.Recipe:
    """Check a recipe and put it into `file`.

    Raises:
        RecipeError: it does not fit the schema.
        UsageError: the file is there and `force` is not said, or it is a folder.
        MachineError: it cannot be written.
    """
    raw, lines = recipe.parse(content, where=str(file))
    checked = recipe.validate(recipe.Recipe, raw, where=str(file), lines=lines)
    put(file, content, force=force)
    return checked


def put(file: Path, content: str, *, force: bool) -> None:
    """Write a text file, never over what is there unless `force` says so.

    Raises:
        UsageError: the file is there and `force` is not said, or it is a folder.
        MachineError: it cannot be written.
    """
    if file.is_dir():
        raise UsageError("this is a folder", code="LK0152", where=str(file), next="name a file, such as llmkit.yaml")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not force:
            file.touch(exist_ok=False)
        # Whole or not at all: a disk that is full must not cost what stood there.
        whole = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            whole.write_text(content, "utf-8")
            whole.replace(file)
        except OSError:
            whole.unlink(missing_ok=True)
            if not force:
                file.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise UsageError(
            "the file is there already", code="LK0152", where=str(file), next="name another one, or --force to replace it"
        ) from None
    except OSError as error:
        raise MachineError(
            f"cannot write the file: {error.strerror}", code="LK0153", where=str(file), next="name a file that you may write"
        ) from None


def _one_line(words: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in words)


def _commented(line: str, reason: str) -> str:
    return f"{line:<{_COLUMN - 1}} # {_one_line(reason)}" if len(line) < _COLUMN - 1 else f"{line}   # {_one_line(reason)}"


def _value(value: Any) -> str:
    """One line of YAML that reads as `value`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # JSON's own escapes of what lies beyond 16 bits are not YAML's.
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
