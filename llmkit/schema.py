"""What a recipe may say, key by key, read off the schema itself. Knows types, bounds and meanings; reads no recipe.

Every word that help, docs and completion say of a key comes from here, so that it cannot drift from what is checked.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmkit.errors import UsageError
from llmkit.recipe import Recipe

REQUIRED = "required"
_SPELLED = re.compile(r"\w+:|bf16|fp32|lora|sft|orpo|dpo|kto|vllm|bitsandbytes|pass@k")
_LONGEST = 200  # characters of a key that are looked at
_NAMES: Mapping[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
_LENGTHS = (("min_length", "at least"), ("max_length", "at most"))  # of a text in characters, of a list in items
# Values that no type, bound or default tells: for the example alone.
_EXAMPLES: Mapping[str, object] = {
    "name": "mine",
    "model": "demo:gemma-3-270m",
    "data": {"sources": [{"path": "data/*.jsonl"}]},
    "data.sources": [{"path": "data/*.jsonl"}],
    "data.sources.path": "data/*.jsonl",
    "data.sources.format": "messages",
    "data.sources.languages": ["zh"],
    "data.split": {"train": 0.9, "valid": 0.05, "test": 0.05},
    "data.split.train": 0.8,
    "data.split.valid": 0.1,
    "data.split.test": 0.1,
    "data.split.near": 0.8,
    "data.pairs": {"rejected": "shuffle"},
    "data.pairs.rating": "score",
    "data.pairs.edited": "corrected",
    "clean.glossary": "glossary.csv",
    "clean.languages": ["zh", "en"],
    "clean.max_repetition": 0.3,
    "clean.max_special": 0.4,
    "clean.sensitive": {"words": ["words.txt"]},
    "clean.sensitive.words": "words.txt",
    "clean.custom": "judge.py",
    "clean.dedup.near": 0.8,
    "clean.decontaminate": {"against": ["benchmark.jsonl"]},
    "clean.decontaminate.against": "benchmark.jsonl",
    "clean.workers": 4,
    "clean.decontaminate.near": 0.8,
    "finetune.template": "chatml",
    "finetune.lora.dropout": 0.1,
    "finetune.lora.targets": ["q_proj", "v_proj"],
    "finetune.lora.modules_to_save": ["embed_tokens"],
    "finetune.init_adapter": "runs/mine/finetune",
    "finetune.lr": 2e-5,
    "finetune.beta": 0.05,
    "finetune.epochs": 3,
    "finetune.max_steps": 100,
    "finetune.micro_batch": 2,
    "finetune.weight_decay": 0.01,
    "finetune.checkpoint_every": 50,
    "finetune.patience": 3,
    "finetune.report_to": ["tensorboard"],
    "merge.adapters": [{"path": "other-adapter", "weight": 0.5}],
    "merge.adapters.path": "other-adapter",
    "quantize": [{"bits": 8}, {"bits": 4}],
    "quantize.method": "bitsandbytes",
    "quantize.skip": ["down_proj"],
    "export.types": ["q8_0", "q5_k_m"],
    "export": {"types": ["q8_0"]},
    "export.adapter": "q4_k_m",
    "export.imatrix": True,
    "export.min_retention": 0.8,
    "export.min_rouge_l": 15,
    "export.max_shard_size": "4GB",
    "export.pre": "qwen2",
    "export.template": "chatml",
    "eval.max_samples": 100,
    "eval.temperature": 0.7,
    "eval.top_p": 0.9,
    "eval.batch_size": 16,
    "eval.slots": 4,
    "eval.endpoint": {"url": "http://localhost:8080/v1"},
    "eval.endpoint.url": "http://localhost:8080/v1",
    "eval.endpoint.name": "served",
    "eval.endpoint.model": "mine",
    "eval.endpoint.key_env": "SERVED_KEY",
    "eval.sensitive": ["words.txt"],
    "eval.tasks": ["ceval-valid"],
    "eval.task_limit": 100,
    "eval.task_fewshot": 5,
    "eval.code.problems": "problems.jsonl",
    "eval.code.temperature": 0.2,
    "eval.code.limit": 20,
    "eval.code.k": [1],
    "eval.review": {"models": ["merged", "q8_0"]},
    "eval.review.models": ["merged", "q8_0"],
    "eval.review.ratings": ["ann.json"],
    "eval.gate.baseline": "merged",
    "eval.gate.max_drop": {"rougeL": 1.0},
    "eval.gate.min": {"rougeL": 15},
    "eval.gate.max": {"perplexity": 20},
    "eval.gate.min_retention": 0.9,
    "eval.gate.min_tokens_per_second": 5,
    "eval.gate.max_size": "300MB",
    "eval.gate.variants": ["q8_0"],
}


@dataclass(frozen=True)
class Key:
    """One dotted key of a recipe.

    `default`: a plain value, or `REQUIRED`; `bounds` and `choices` are empty where there are none; `section`: it holds keys of
    its own; `listed`: the list of sections that it stands in an item of, as data.sources; `example`: a value that is valid.
    """

    path: str
    type: str
    default: Any
    description: str
    bounds: str = ""
    choices: tuple[str, ...] = ()
    section: bool = False
    listed: str = ""
    example: Any = None

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def assignment(self) -> str:
        """The key with its example, as `--set` takes it: the first item of the list that it stands in."""
        path = self.path.replace(self.listed, f"{self.listed}.0", 1) if self.listed else self.path
        return f"{path}={json.dumps(self.example, ensure_ascii=False) if not isinstance(self.example, str) else self.example}"


def keys() -> Iterator[Key]:
    """Every key of a recipe, sections before what they hold, in the order of the schema."""
    yield from _all().values()


def below(path: str) -> list[Key]:
    """The keys that stand directly in the section `path`; of the recipe itself for an empty one."""
    prefix = f"{path}." if path else ""
    return [key for key in keys() if key.path.startswith(prefix) and "." not in key.path.removeprefix(prefix)]


def find(name: str) -> Key:
    """The key that `name` says: its whole path (quantize.0.bits is quantize.bits), or an end of it that is the only such.

    Raises:
        UsageError: there is none (names the nearest), or there are several (names them).
    """
    known = _all()
    path = re.sub(r"\[\d*\]|\.\d+(?=\.|$)", "", name.strip())[:_LONGEST]
    if path in known:
        return known[path]
    parent = known.get(path.rpartition(".")[0])
    if parent and parent.type.startswith("mapping"):
        return parent
    ends = [key for key in known if key.endswith(f".{path}")]
    if len(ends) == 1:
        return known[ends[0]]
    if ends:
        raise UsageError(
            f"{len(ends)} keys end so: {', '.join(ends)}", code="LK0150", where=path, next=f"`llmkit explain {ends[0]}`"
        )
    near = nearest(path, known)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        "no recipe key is called so", code="LK0150", where=path, next=f"{hint}`llmkit explain finetune` lists a section's keys"
    )


def nearest(path: str, known: Iterable[str]) -> list[str]:
    """At most three of `known` that look like `path`, or end in a word that looks like its last."""
    listed = list(known)
    whole = difflib.get_close_matches(path, listed, n=3, cutoff=0.7)
    last = path.rpartition(".")[2]
    words = difflib.get_close_matches(last, {key.rpartition(".")[2] for key in listed}, n=1, cutoff=0.7)
    ends = [key for key in listed if words and key.rpartition(".")[2] == words[0]]
    return list(dict.fromkeys([*whole, *ends]))[:3]


@cache
def _all() -> dict[str, Key]:
    return {key.path: key for key in _walk(Recipe, "", "")}


def _walk(model: type[BaseModel], prefix: str, listed: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner, in_list = _section_in(field.annotation)
        yield _key(path, field, section=inner is not None, listed=listed)
        if inner:
            yield from _walk(inner, f"{path}.", path if in_list else listed)


def _key(path: str, field: FieldInfo, *, section: bool, listed: str) -> Key:
    choices, default = _choices(field.annotation), _default(field)
    words = _type(field.annotation)
    return Key(
        path=path,
        type=words,
        default=default,
        description=_sentence(field.description or ""),
        bounds=_bounds(field.metadata, unit="item" if words.startswith("list") else "character"),
        choices=choices,
        section=section,
        listed=listed,
        example=_EXAMPLES[path] if path in _EXAMPLES else _example(field, default, choices),
    )


def _sentence(text: str) -> str:
    """Some descriptions begin in lower case and some do not; a name, or a value with a colon, stays as it is spelled."""
    text = text if _SPELLED.match(text) else text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "…", "?")) else f"{text}."


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model that a key holds, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    is_list = typing.get_origin(annotation) is tuple
    for inner in typing.get_args(annotation):
        found, deeper = _section_in(inner)
        if found:
            return found, is_list or deeper
    return None, False


def _type(annotation: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _NAMES:
        words = _NAMES[annotation]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        words = "section"
    elif origin is typing.Annotated:
        words = _type(inner[0])
    elif origin is Literal:
        words = str(inner[0]) if len(inner) == 1 else "choice"
    elif origin in (Union, types.UnionType):
        words = " or ".join(dict.fromkeys(map(_type, inner)))
    elif origin is tuple:
        words = f"list of {_type(inner[0])}s"
    elif origin is dict:
        words = f"mapping of names to {_type(inner[1])}s"
    else:
        raise TypeError(f"the schema holds a type that schema.py cannot put in words: {annotation}")
    return words


def _choices(annotation: Any) -> tuple[str, ...]:
    """Every literal value, as a recipe spells it."""
    if typing.get_origin(annotation) is Literal:
        return tuple(str(one) for one in typing.get_args(annotation))
    return tuple(one for inner in typing.get_args(annotation) if inner is not Ellipsis for one in _choices(inner))


def _bounds(metadata: Iterable[Any], *, unit: str) -> str:
    """Such as "at least 0, below 1", or "at least 1 item"."""
    found = [f"{word} {getattr(rule, name):,}" for name, word in _BOUNDS for rule in metadata if hasattr(rule, name)]
    for name, word in _LENGTHS:
        lengths = [getattr(rule, name) for rule in metadata if hasattr(rule, name)]
        found += [f"{word} {length} {unit}{'s' if length != 1 else ''}" for length in lengths]
    return ", ".join(found)


def _default(field: FieldInfo) -> Any:
    if field.default is PydanticUndefined:
        return REQUIRED
    return _plain(field.default)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _example(field: FieldInfo, default: Any, choices: tuple[str, ...]) -> Any:
    """A valid value, another than the default where that can be told."""
    inner = next(one for one in (*typing.get_args(field.annotation), field.annotation) if one is not type(None))
    if choices:
        other = next((one for one in choices if one != default), choices[0])
        literal = int(other) if other.isdigit() else other
        return [literal] if _type(field.annotation).startswith("list") else literal
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return 2 * default or 1
    if isinstance(default, float):
        return default / 2
    if default in (None, REQUIRED):
        return {int: 1, float: 0.5}.get(inner, {})
    return default
