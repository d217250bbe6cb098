"""`llmkit explain`: what is said of a key is what the schema checks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from llmkit import recipe, schema
from llmkit.commands import explaining
from llmkit.errors import RecipeError, UsageError
from llmkit.recipe import Recipe
from llmkit.schema import Key

KEYS = list(schema.keys())
VALUES = [key for key in KEYS if not key.section]
# Every section that a key can stand in, each with what it cannot do without.
WHOLE: dict[str, Any] = {
    "name": "whole",
    "model": "./base",
    "data": {"sources": [{"path": "a.jsonl"}], "pairs": {"rejected": "shuffle"}},
    "clean": {"sensitive": {"words": ["w.txt"]}, "decontaminate": {"against": ["b.jsonl"]}, "personal": {}},
    "finetune": {},
    "merge": {"adapters": [{"path": "other"}]},
    "quantize": [{"bits": 4}],
    "export": {"types": "auto"},
    "eval": {"endpoint": {"url": "http://x/v1"}, "code": {}, "review": {"models": ["a", "b"]}, "gate": {}},
}
# What another key's value would contradict.
WITHOUT = {
    "data.pairs.rating": ("data.pairs", {"edited": "e"}),
    "data.pairs.edited": ("data.pairs", {"rating": "r"}),
    "quantize.bits": ("quantize", [{"bits": 8}]),
    "eval.gate.max_drop": ("eval.gate", {"baseline": "merged"}),
}


def load(key: str, *overrides: str) -> Recipe:
    raw = json.loads(json.dumps(WHOLE))
    if key in WITHOUT:
        place, value = WITHOUT[key]
        recipe.override(raw, [f"{place}={json.dumps(value)}"])
    if key in ("data.pairs.rating", "data.pairs.edited"):
        raw["data"]["pairs"] = {}
    recipe.override(raw, overrides)
    return recipe.validate(Recipe, raw, where="test")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_has_a_meaning_a_type_and_an_example_that_is_valid(key: Key) -> None:
    assert len(key.description) > 5
    assert key.description.endswith((".", "…", "?"))
    assert key.type
    load(key.path, key.assignment)


def test_a_value_s_example_is_another_than_the_default() -> None:
    same = [key.path for key in VALUES if key.example == key.default]
    # Shares must sum to one, and some keys have one sound value alone.
    shares = {f"data.split.{side}" for side in ("train", "valid", "test")}
    assert set(same) <= shares | {"data.pairs.template", "quantize.method", "eval.code.k"}


def test_the_keys_are_those_that_the_schema_holds() -> None:
    def dumped(value: Any, path: str) -> set[str]:
        if isinstance(value, BaseModel):
            fields = list(type(value).model_fields)
            below = (dumped(getattr(value, name), f"{path}{name}.") for name in fields)
            return {f"{path}{name}" for name in fields}.union(*below)
        if isinstance(value, tuple):
            return set().union(*(dumped(one, path) for one in value))
        return set()

    assert dumped(load(""), "") == {key.path for key in KEYS}


@pytest.mark.parametrize("key", [key for key in VALUES if key.bounds], ids=lambda key: key.path)
def test_bounds_are_those_that_are_checked(key: Key) -> None:
    """Each bound's number itself, and what lies just beyond it."""
    for bound in key.bounds.split(", "):
        words, _, number = bound.rpartition(" ")
        if words not in ("at least", "at most", "above", "below"):
            continue
        limit = float(number.replace(",", ""))
        step = 1 if key.type.startswith("whole") else 1e-6
        beyond = limit - step if words in ("at least", "above") else limit + step
        refused = {"at least": [beyond], "at most": [beyond], "above": [limit], "below": [limit]}[words]
        path = key.assignment.partition("=")[0]
        for value in refused:
            with pytest.raises(RecipeError):
                load(key.path, f"{path}={int(value) if key.type.startswith('whole') else value}")


@pytest.mark.parametrize("key", [key for key in VALUES if key.choices and "text" not in key.type], ids=lambda key: key.path)
def test_choices_are_those_that_are_taken(key: Key) -> None:
    path = key.assignment.partition("=")[0]
    wrap = "[{}]" if key.type.startswith("list") else "{}"
    with pytest.raises(RecipeError):
        load(key.path, f"{path}={wrap.format('neither')}")
    for choice in key.choices:
        if choice not in ("gptq", "awq", "w8a8", "auto", "split", "fp4"):  # refused, or alone
            load(key.path, f"{path}={wrap.format(choice)}")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("finetune.lora.rank", "finetune.lora.rank"),
        ("rank", "finetune.lora.rank"),
        ("lora.rank", "finetune.lora.rank"),
        ("quantize.bits", "quantize.bits"),
        ("quantize.0.bits", "quantize.bits"),
        ("quantize[1].bits", "quantize.bits"),
        ("data.sources.3.path", "data.sources.path"),
        ("eval.gate.max_drop.rougeL", "eval.gate.max_drop"),
        ("finetune", "finetune"),
    ],
)
def test_a_key_is_found_by_its_path_its_end_or_with_an_index(said: str, meant: str) -> None:
    assert schema.find(said).path == meant


@pytest.mark.parametrize(
    ("said", "hint"),
    [("finetune.lora.rnak", "finetune.lora.rank"), ("finetune.epoch", "finetune.epochs"), ("lr_rate", "explain finetune")],
)
def test_an_unknown_key_names_the_nearest(said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        schema.find(said)
    assert hint in caught.value.next
    assert caught.value.code == "LK0150"


def test_an_end_that_several_keys_share_names_them() -> None:
    with pytest.raises(UsageError, match=r"data\.sources\.path, merge\.adapters\.path"):
        schema.find("path")


@given(st.text(max_size=300))
def test_whatever_is_asked_is_explained_or_refused(said: str) -> None:
    refused = ""
    try:
        assert explaining.explain(said).text
    except UsageError as error:
        refused = error.code
    assert refused in ("", "LK0150", "LK0115")


def test_a_section_lists_its_keys_and_json_holds_them_all() -> None:
    told = explaining.explain("finetune.lora")
    inner = [key.path for key in KEYS if key.path.startswith("finetune.lora.")]
    assert [one["path"] for one in told.data["keys"]] == inner
    assert all(path in told.text for path in inner)
    assert json.loads(json.dumps(told.data)) == dict(told.data)


def test_a_code_is_explained_from_the_catalogue_and_an_unknown_one_refused() -> None:
    assert explaining.explain("lk0150").text.startswith("LK0150: ")
    with pytest.raises(UsageError, match="no such error code"):
        explaining.explain("LK0199")


def test_defaults_are_those_of_a_recipe_that_says_nothing() -> None:
    bare = Recipe(name="bare", model="./base", finetune={}, export={}, eval={})  # type: ignore[arg-type]
    for key in VALUES:
        value: Any = bare
        for part in key.path.split("."):
            value = getattr(value, part, ...)
        if value is not ... and not isinstance(value, BaseModel):
            assert key.default == (list(value) if isinstance(value, tuple) else value) or key.required, key.path


def test_what_must_be_given_is_said_to_be_required() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"data": {"sources": [{}]}, "quantize": [{}]})
    missing = [error["loc"] for error in caught.value.errors() if error["type"] == "missing"]
    required = {key.path for key in KEYS if key.required and key.path.split(".")[0] in ("name", "model", "data", "quantize")}
    assert {".".join(str(part) for part in loc if not isinstance(part, int)) for loc in missing} == required - {"data.sources"}
