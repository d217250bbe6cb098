"""bitsandbytes checkpoints: what is stored, what is skipped, and that the saved copy is the model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llmkit.engine import loading, quantize
from llmkit.engine.quantize import Settings
from llmkit.errors import DataError, FidelityError, UsageError

LAYERS = 2 * 7  # of tiny_model: four projections of attention and three of the MLP, twice
KINDS = [
    Settings(8),
    Settings(4),
    Settings(4, "fp4"),
    Settings(4, "nf4", double_quant=True),
    Settings(4, "fp4", double_quant=True),
]


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        return set(stream.keys())


def dequantized(folder: Path, name: str) -> torch.Tensor:
    """A layer's weight as bitsandbytes restores it, before any forward pass."""
    import bitsandbytes

    module = loading.load_model(folder).get_submodule(name)
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        return module.weight.CB.float() * module.weight.SCB[:, None].float() / 127
    weight: torch.Tensor = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    return weight


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_checkpoint_keeps_its_kind_through_saving_and_loading(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    """Each weight (in bf16, as it is read) comes back within half a step of its grid, and the KL is that of a whole model."""
    facts = quantize.quantize(tiny_model, tmp_path, settings)
    assert facts["quantized_layers"] == LAYERS
    assert facts["probe_kl"] < 0.01
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["load_in_8bit"] is (settings.bits == 8)
    if settings.bits == 4:
        assert (config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == (
            settings.quant_type,
            settings.double_quant,
        )
        assert any("nested_absmax" in key for key in keys(tmp_path)) is settings.double_quant
    name = "model.layers.1.mlp.down_proj"
    weight = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).get_submodule(name).weight.detach().float()
    step = {8: 1 / 127, 4: 1 / 3}[settings.bits]  # of a block's largest: FP4's and NF4's widest gap between neighbours
    gap = (dequantized(tmp_path, name) - weight).abs().max()
    assert gap <= 0.51 * step * weight.abs().max()


def test_what_is_skipped_keeps_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    facts = quantize.quantize(tiny_model, tmp_path, Settings(4, skip=("down_proj", "layers.0.self_attn")))
    assert facts["quantized_layers"] == LAYERS - 2 - 4
    assert "lm_head" in facts["skipped"]
    found = loading.load_model(tmp_path)
    kinds = {name: type(module).__name__ for name, module in found.named_modules()}
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "lm_head"):
        assert kinds[name] == "Linear"
    assert kinds["model.layers.1.self_attn.q_proj"] == "Linear4bit"


def test_a_name_that_no_layer_has_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("proj", "down", "layers.7"):
        with pytest.raises(UsageError, match=f"no linear layer called {name}") as told:
            quantize.quantize(tiny_model, tmp_path / "out", Settings(4, skip=(name,)))
        assert "down_proj" in told.value.next
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_quantize_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no linear layer"):
        quantize.quantize(tiny_model, tmp_path, Settings(8, skip=("self_attn", "mlp")))


@pytest.mark.parametrize("weights", [True, False])
def test_a_quantized_model_is_not_quantized_again(weights: bool, tiny_model: Path, tmp_path: Path) -> None:
    """Told by its config.json: no weight need be there."""
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    if not weights:
        (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="quantized already"):
        quantize.quantize(tmp_path / "model", tmp_path / "out", Settings(4))


def test_a_copy_that_does_not_speak_is_not_published(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = loading.save_model

    def spoil(model: torch.nn.Module, folder: Path) -> None:
        model.get_output_embeddings().weight.data = 99 * torch.randn_like(model.get_output_embeddings().weight)  # type: ignore[operator]
        save(model, folder)

    monkeypatch.setattr(loading, "save_model", spoil)
    with pytest.raises(FidelityError, match="no longer resembles"):
        quantize.quantize(tiny_model, tmp_path, Settings(8))
