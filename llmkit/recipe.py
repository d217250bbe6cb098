"""Recipes: strict YAML to one frozen `Recipe`. Knows the schema; nothing of what is on disk but the recipe itself.

A recipe is data from a stranger: no tags, no anchors, no duplicate keys, no unknown keys; the error names the line and
the nearest key that exists.
"""

import difflib
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from llmkit.errors import RecipeError
from llmkit.evaluation import settings as eval_settings
from llmkit.steps import clean as clean_step
from llmkit.steps import export as export_step
from llmkit.steps import finetune as finetune_step
from llmkit.steps import merge as merge_step
from llmkit.steps import pairs as pairs_step
from llmkit.steps import quantize as quantize_step

MAX_RECIPE_BYTES = 1_000_000
STRICT = ConfigDict(frozen=True, extra="forbid")
M = TypeVar("M", bound=BaseModel)


class Source(BaseModel):
    model_config = STRICT
    path: str = Field(
        description="A file, a folder, a glob (data/*.jsonl), a folder that `datasets` saved, hub:OWNER/NAME, "
        "modelscope:OWNER/NAME, or demo:chatterbot; relative to where you run. JSON lines, JSON, CSV, Parquet or Arrow, "
        "also gzip or zstd."
    )
    format: str | None = Field(None, description="The records' format, where it is not to be detected: messages, sharegpt, …")
    languages: tuple[str, ...] | None = Field(
        None, description="demo:chatterbot only: any of zh, zh-Hant, en (default zh, en)."
    )

    @field_validator("format")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        from llmkit.data.formats import NAMES

        if value is not None and value not in NAMES:
            raise ValueError(f"no such format; choose from {', '.join(NAMES)}")
        return value


class Data(BaseModel):
    model_config = STRICT
    sources: tuple[Source, ...] = Field(min_length=1, description="Where the dialogues come from.")
    split: clean_step.Split = Field(
        clean_step.Split(), description="Shares of train, valid and test; near-duplicates stay on one side."
    )
    pairs: pairs_step.Config | None = Field(
        None, description="Preference pairs from ratings, from edits, or made for dialogues without a rejected answer."
    )


# `quantize: {bits: 4}` is as good as a list of one.
def _listed(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


class Recipe(BaseModel):
    """One run, whole: what goes in, what each step does, what comes out."""

    model_config = STRICT
    name: str = Field(pattern=r"^[\w][\w.-]{0,99}$", description="Names the run's folder under the workspace.")
    model: str = Field(
        min_length=1,
        description="The base: a hub id, modelscope:ID (ID@REVISION pins), ./path, demo:gemma-3-270m or demo:smollm2-135m.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seeds the split, the pairs and training.")
    data: Data | None = Field(None, description="The dialogues; needed by finetune and eval.")
    clean: clean_step.Rules = Field(clean_step.Rules(), description="What a dialogue must be to stay.")
    finetune: finetune_step.Config | None = Field(
        None, description="LoRA training; without it the base itself is quantized and exported."
    )
    merge: merge_step.Config = Field(merge_step.Config(), description="How the adapter goes into the base.")
    quantize: Annotated[tuple[quantize_step.Config, ...], BeforeValidator(_listed)] = Field(
        (), description="bitsandbytes checkpoints."
    )
    export: export_step.Config | None = Field(None, description="GGUF files.")
    eval: eval_settings.Config | None = Field(None, description="What is measured, on every variant.")


SECTIONS = ("data", "clean", "finetune", "merge", "quantize", "export", "eval")


def bundled() -> dict[str, Path]:
    """The recipes that ship with llmkit: name → file."""
    # In a wheel they lie inside the package, in a checkout beside it.
    inside = Path(str(importlib.resources.files("llmkit"))) / "recipes"
    folder = inside if inside.is_dir() else inside.parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe given as a path or as a bundled recipe's name.

    Raises:
        RecipeError: neither a file nor a bundled name; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = bundled()
    stem = name.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError("no such recipe", code="LK0101", where=name, next=f"{hint}give a file, or one of: {', '.join(known)}")


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: the YAML file, UTF-8, at most 1 MB.
        overrides: `--set` values, "dotted.key=YAML".

    Raises:
        RecipeError: anything that does not fit, with the line or the override it stands in.
    """
    raw, lines = read(path)
    override(raw, overrides)
    return validate(Recipe, raw, where=str(path), lines=lines)


def read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A recipe's raw mapping, and the line each dotted key stands on.

    Raises:
        RecipeError: it cannot be read, or is no mapping.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError("a recipe is at most 1 MB", code="LK0102", where=str(path))
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe cannot be read: {error}", code="LK0102", where=str(path)) from error
    raw, lines = parse(text, where=str(path))
    if not isinstance(raw, dict):
        raise RecipeError(
            "a recipe is a mapping of keys to values",
            code="LK0102",
            where=str(path),
            next="see `llmkit recipes show quickstart`",
        )
    return raw, lines


def override(raw: dict[str, Any], assignments: Iterable[str]) -> None:
    """Apply `--set a.b=value` to the raw mapping, creating sections on the way; a number in the key is a list's index."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise RecipeError(
                "an override is KEY=VALUE",
                code="LK0104",
                where=f"--set {assignment}",
                next="for example --set finetune.lora.rank=16",
            )
        value, _ = parse(text, where=f"--set {assignment}")
        _assign(raw, key.split("."), value, where=f"--set {assignment}")


def _assign(raw: Any, path: list[str], value: object, *, where: str) -> None:
    for position, step in enumerate(path):
        last = position == len(path) - 1
        index: Any = step
        if isinstance(raw, list):
            if not step.isdigit() or int(step) >= len(raw):
                raise RecipeError(f"there is no item {step!r} in this list of {len(raw)}", code="LK0104", where=where)
            index = int(step)
        elif not isinstance(raw, dict):
            raise RecipeError(f"{'.'.join(path[:position])} is a value and has no key {step!r}", code="LK0104", where=where)
        if last:
            raw[index] = value
        else:
            if isinstance(raw, dict) and raw.get(index) is None:
                raw[index] = {}
            raw = raw[index]


def validate(schema: type[M], raw: object, *, where: str, lines: Mapping[str, int] | None = None) -> M:
    """`raw` as a frozen `schema`.

    Raises:
        RecipeError: one line per problem, each with its key, its line, and the nearest valid key.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(schema, problem, lines or {}) for problem in error.errors()]
    raise RecipeError(
        "; ".join(problems), code="LK0103", where=where, next="`llmkit validate RECIPE` checks again without running anything"
    )


def parse(text: str, *, where: str) -> tuple[Any, dict[str, int]]:
    """YAML text as plain values, and the line each dotted key stands on.

    Raises:
        RecipeError: not YAML, a tag, an anchor, or a key given twice.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[str, int] = {}
        if node is None:
            return None, lines
        _walk(node, (), lines, where=where)
        return _Loader("").construct_document(node), lines
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(
            f"this is not YAML that a recipe may hold: {problem}", code="LK0102", where=f"{where}{line}"
        ) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases: a small file must not unfold into a large one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)


def _walk(node: yaml.Node, path: tuple[str, ...], lines: dict[str, int], *, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[".".join((*path, str(index)))] = item.start_mark.line + 1
            _walk(item, (*path, str(index)), lines, where=where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise RecipeError(
                f"{'.'.join((*path, name))} is given twice", code="LK0102", where=f"{where}:{line}", next="keep one of them"
            )
        seen.add(name)
        lines[".".join((*path, name))] = line
        _walk(value, (*path, name), lines, where=where)


def _explain(schema: type[BaseModel], problem: Mapping[str, Any], lines: Mapping[str, int]) -> str:
    path = [str(step) for step in problem["loc"]]
    key = ".".join(path)
    place = f" (line {lines[key]})" if key in lines else ""
    if problem["type"] == "extra_forbidden":
        known = _keys_at(schema, path[:-1])
        inside = [".".join((*path[:-1], name, path[-1])) for name in known if path[-1] in _keys_at(schema, [*path[:-1], name])]
        near = inside[:1] or difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        return f"unknown key {key!r}{place}" + (f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}")
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    return f"{key!r}{place}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, got {_short(problem['input'])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The valid keys of the section at `path`, found by walking the annotations."""
    here: Any = schema
    for step in path:
        if step in getattr(here, "model_fields", {}):
            here = _model_in(here.model_fields[step].annotation)
    return list(getattr(here, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The model class inside Optional, tuple or Annotated; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
