"""Recipes are strict: whatever does not fit is named, with its line and the nearest key that would."""

from pathlib import Path

import pytest

from llmkit import recipe
from llmkit.errors import RecipeError

GOOD = """
name: mine
model: ./base
data: {sources: [{path: data.jsonl}]}
finetune:
  lr: 1e-5
  lora: {rank: 8}
quantize: {bits: 4}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> recipe.Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return recipe.load(path, overrides)


def test_scientific_notation_is_a_number_and_one_quantization_is_a_list(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.finetune
    assert found.finetune.lr == 1e-5
    assert [config.bits for config in found.quantize] == [4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("rank: 8", "rnak: 8"), r"unknown key 'finetune.lora.rnak' \(line 7\), did you mean 'rank'"),
        (GOOD.replace("quantize", "quantise"), r"unknown key 'quantise' \(line 8\), did you mean 'quantize'"),
        (GOOD.replace("bits: 4", "bit: 4"), "did you mean 'bits'"),
        (
            "name: x\nmodel: y\nfinetune: {rank: 3}",
            r"unknown key 'finetune.rank' \(line 3\), did you mean 'finetune.lora.rank'",
        ),
        (GOOD.replace("rank: 8", "rank: many"), r"'finetune.lora.rank' \(line 7\).*valid integer.*'many'"),
        (GOOD.replace("bits: 4", "bits: 3"), "got 3"),
        (GOOD + "name: other\n", "name is given twice"),
        (GOOD.replace("rank: 8", "rank: 8, rank: 9"), "finetune.lora.rank is given twice"),
        (GOOD.replace("model: ./base", ""), "'model' is missing"),
        (GOOD.replace("mine", "../../evil"), "'name'"),
        ("- a\n- b\n", "mapping"),
        ("", "mapping"),
        ("a: [", "not YAML"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    import re

    assert re.search(expected, caught.value.what), caught.value.what
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.what


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    found = load(
        tmp_path, GOOD, "finetune.lora.rank=4", "quantize.bits=8", "eval.max_new_tokens=7", "data.sources=[{path: b.jsonl}]"
    )
    assert found.finetune
    assert found.finetune.lora.rank == 4
    assert found.quantize[0].bits == 8
    assert found.eval
    assert found.eval.max_new_tokens == 7
    assert found.data
    assert found.data.sources[0].path == "b.jsonl"


@pytest.mark.parametrize(
    "override", ["rank", "=3", "a..b=1", "name.x=1", "quantize.7.bits=8", "finetune.lora.rank=[", "nmae=x"]
)
def test_a_bad_override_is_a_recipe_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load(tmp_path, GOOD, override)


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, GOOD).name = "other"  # type: ignore[misc]


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.find("quikstart")
    assert "did you mean 'quickstart'" in caught.value.next


def test_a_file_that_is_no_text_is_a_recipe_error(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(tmp_path / "r.yaml")
