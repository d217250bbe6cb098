"""The merge step: which adapters go in with which weight, and the base they must share."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from llmkit.artifact import Artifact, Kind
from llmkit.engine import loading, lora
from llmkit.errors import UsageError
from llmkit.steps import merge

Wrap = Callable[..., Artifact]


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path, artifact_of: Wrap) -> Mapping[str, Artifact]:
    """A base and two adapters with random weights: roles base, adapter, adapter.0."""
    base = artifact_of(tiny_model, Kind.MODEL)
    found = {"base": base}
    for seed, role in enumerate(("adapter", "adapter.0")):
        shape = lora.Shape(rank=2 + seed, alpha=8)
        model = lora.attach(loading.load_model(tiny_model), shape, seed=seed, precision="fp32", base_ref="demo:tiny")
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight) * weight.requires_grad
        lora.save(model, tmp_path / role)
        loading.load_tokenizer(tiny_model).save_pretrained(tmp_path / role)
        facts = {"eos_token": "<|im_end|>"}
        found[role] = artifact_of(tmp_path / role, Kind.ADAPTER, facts=facts, inputs={"base": base.fingerprint})
    return found


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    merge.run(merge.Config.model_validate(config), inputs, out)
    state: dict[str, torch.Tensor] = loading.load_model(out).state_dict()
    return state


def test_each_adapter_goes_in_with_its_weight(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    one = {role: inputs[role] for role in ("base", "adapter")}
    other = {"base": inputs["base"], "adapter": inputs["adapter.0"]}
    config = {"dtype": "fp32", "weight": 0.5, "adapters": [{"path": "other", "weight": -2}]}
    both = run(config, inputs, tmp_path / "both")
    first, second = (run({"dtype": "fp32"}, each, tmp_path / str(id(each))) for each in (one, other))
    base = loading.load_model(inputs["base"].path).state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    expected = base[name] + 0.5 * (first[name] - base[name]) - 2 * (second[name] - base[name])
    assert torch.allclose(both[name], expected, rtol=0, atol=3e-6)
    assert not torch.allclose(both[name], base[name], atol=1e-3)


def test_the_turn_end_of_the_training_ends_the_generation(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    run({}, {role: inputs[role] for role in ("base", "adapter")}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.parametrize("role", ["adapter", "adapter.0"])
def test_an_adapter_of_another_base_is_refused(
    role: str, inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap
) -> None:
    stranger = artifact_of(inputs[role].path, Kind.ADAPTER, inputs={"base": "another"})
    with pytest.raises(UsageError, match="trained on another base") as caught:
        run({"adapters": [{"path": "other"}]}, {**inputs, role: stranger}, tmp_path / "out")
    assert caught.value.where == str(stranger.path)


@pytest.mark.parametrize("config", [{"weight": float("nan")}, {"adapters": [{"path": ""}]}, {"adapters": [{"weight": 1}]}])
def test_a_sum_without_meaning_does_not_validate(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        merge.Config.model_validate(config)
