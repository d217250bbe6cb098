"""A fused LoRA layer gives what peft's gives, outputs and gradients, and leaves alone what it cannot do."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.engine.fused import fused

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def adapted(family: str = "qwen2", **options: Any) -> Any:
    """qwen2 has biases."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False, **options}
    return get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM")).train()


def learnt(model: Any, *, autocast: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(IDS).logits.float()
    logits.square().mean().backward()
    return logits.detach(), [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["o_proj"]}])
def test_outputs_and_gradients_equal_those_of_peft(family: str, options: dict[str, Any]) -> None:
    model = adapted(family, **options)
    expected, wanted = learnt(model)
    with fused(model) as count:
        assert count == (2 if options.get("target_modules") else {"phi3": 8}.get(family, 14))
        found, got = learnt(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for gradient, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_under_autocast_it_is_as_near_to_exact_as_peft() -> None:
    model = adapted()
    exact, _ = learnt(model)
    rounded, _ = learnt(model, autocast=True)
    with fused(model):
        found, _ = learnt(model, autocast=True)
    assert (found - exact).abs().mean() < 1.2 * (rounded - exact).abs().mean()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_other_kinds_stay_with_peft(options: dict[str, Any]) -> None:
    model = adapted(**options)
    with fused(model) as count:
        assert count == 0


def test_an_adapter_that_is_switched_off_is_off_and_the_layers_come_back() -> None:
    model = adapted()
    with model.disable_adapter():
        expected = model(IDS).logits
    before = model(IDS).logits
    with fused(model), model.disable_adapter():
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, before)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_layers_that_read_one_input_keep_one_copy_of_it() -> None:
    model = adapted("llama")
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tensor.shape == (10, 32):
            kept[tensor.untyped_storage().data_ptr()] = kept.get(tensor.untyped_storage().data_ptr(), 0) + 1
        return tensor

    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with fused(model), watched, torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS).logits
    assert logits.requires_grad
    assert sorted(kept.values())[-4:] == [2, 2, 3, 3]  # gate and up; query, key and value; in two layers
