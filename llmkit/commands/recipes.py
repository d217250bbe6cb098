"""`llmkit recipes …` and `validate`."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from llmkit import origin, pipeline, recipe
from llmkit.commands.result import Result
from llmkit.errors import LlmkitError, RecipeError, UsageError
from llmkit.recipe import Recipe


def validate(name: str) -> Result:
    """Keys, types, and that what the recipe names is there: all problems at once, each with its line.

    Raises:
        RecipeError: the recipe does not fit the schema, or files that it names are missing.
    """
    path = recipe.find(name)
    raw, lines = recipe.read(path)
    chosen = recipe.validate(Recipe, raw, where=str(path), lines=lines)
    problems = [*_missing(chosen, lines)]
    if problems:
        next_ = "put the files there, or name others; paths count from where you run"
        raise RecipeError("; ".join(problems), code="LK0154", where=str(path), next=next_)
    nodes = [node.name for node in pipeline.lay_out(chosen).nodes]
    return Result(f"{chosen.name}: valid; steps: {', '.join(nodes)}", {"recipe": chosen.name, "steps": nodes})


def _missing(chosen: Recipe, lines: Mapping[str, int]) -> Iterator[str]:
    """What the recipe names and is not there, each with its key and line."""
    for key, look in _named(chosen):
        try:
            look()
        except LlmkitError as error:
            line = _line(key, lines)
            place = f" (line {line})" if line else ""
            where = f": {error.where}" if error.where else ""
            yield f"{key}{place}{where}: {error.what}"


def _line(key: str, lines: Mapping[str, int]) -> int | None:
    """The line of a key, or of the section that it stands in."""
    parts = key.split(".")
    return next((lines[one] for end in range(len(parts), 0, -1) if (one := ".".join(parts[:end])) in lines), None)


def _named(chosen: Recipe) -> Iterator[tuple[str, Callable[[], object]]]:
    """(key, what looks whether it is there) of everything that a recipe names, in the order of the schema."""
    yield "model", partial(origin.model, chosen.model)
    for index, source in enumerate(chosen.data.sources if chosen.data else ()):
        yield f"data.sources.{index}.path", partial(origin.source, source.path, languages=source.languages)
    rules, tuned, measured = chosen.clean, chosen.finetune, chosen.eval
    paths: list[tuple[str, str | None]] = [("clean.glossary", rules.glossary)]
    paths += [("clean.sensitive.words", path) for path in (rules.sensitive.words if rules.sensitive else ())]
    paths += [("clean.custom", path) for path in rules.custom]
    paths += [("clean.decontaminate.against", path) for path in (rules.decontaminate.against if rules.decontaminate else ())]
    if tuned and tuned.template.endswith(".jinja"):
        paths.append(("finetune.template", tuned.template))
    if chosen.export and isinstance(chosen.export.imatrix, str):
        paths.append(("export.imatrix", chosen.export.imatrix))
    yield from ((key, partial(origin.file, path)) for key, path in paths if path is not None)
    if tuned and tuned.init_adapter:
        yield "finetune.init_adapter", partial(origin.adapter, tuned.init_adapter)
    for index, other in enumerate(chosen.merge.adapters):
        yield f"merge.adapters.{index}.path", partial(origin.adapter, other.path)
    if measured:
        for part in ("sensitive", "code", "tasks", "review", "gate"):
            alone = type(measured)(**{part: getattr(measured, part)})
            yield f"eval.{part}", partial(pipeline.evaluation_files, alone)


def list_recipes() -> Result:
    """The bundled recipes, each with the first line of its comment."""
    found = {name: path.read_text("utf-8").splitlines()[0].lstrip("# ") for name, path in recipe.bundled().items()}
    width = max(map(len, found))
    return Result("\n".join(f"{name:<{width}}  {line}" for name, line in found.items()), found)


def show_recipe(name: str) -> Result:
    """A recipe as it is written."""
    path = recipe.find(name)
    recipe.read(path)
    text = path.read_text("utf-8")
    return Result(text.rstrip("\n"), {"path": str(path), "text": text})


def copy_recipe(name: str, file: Path, *, force: bool) -> Result:
    """A recipe as it is written, comments and all, into a file of yours.

    Raises:
        RecipeError: no such recipe.
        UsageError: the file is there and `force` is not said.
    """
    from llmkit.starting import writing

    path = recipe.find(name)
    chosen = recipe.load(path)
    if file.exists() and file.resolve() == path.resolve():
        raise UsageError("this would copy the recipe onto itself", code="LK0152", where=str(file), next="name another file")
    writing.put(file, path.read_text("utf-8"), force=force)
    next_ = planning(file)
    return Result(f"{path.stem} → {file}\nnext: {next_}", {"recipe": chosen.name, "file": str(file), "next": next_})


def planning(file: Path) -> str:
    """The command that comes next; a recipe of this name is found by itself."""
    return "llmkit plan" if file == Path("llmkit.yaml") else f"llmkit plan {shlex.quote(str(file))}"


def running(file: Path) -> str:
    """The command that runs a recipe's file."""
    return f"llmkit run {shlex.quote(str(file))}"
