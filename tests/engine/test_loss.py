"""The loss at labelled positions equals the plain one."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from llmkit.engine import loss
from llmkit.errors import FidelityError

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gemma2() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=1.5, initializer_range=0.5))


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (3, 12))
    attention = torch.ones_like(ids)
    attention[1, 7:] = attention[2, 10:] = 0
    labels = torch.where((torch.rand(3, 12) < 0.5) & (attention == 1), ids, -100)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def plain(model: Any, data: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), data["labels"][:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("build", [llama, gemma2])
@pytest.mark.parametrize("chunk", [1, 2**27])
def test_loss_and_gradients_equal_the_plain_ones(build: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With softcapping and without; in chunks of one position and all at once."""
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    model, data = build(), batch()
    expected = plain(model, data)
    expected.backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    log_probs, rows = loss.labelled_log_probs(model, data)
    (-log_probs.mean()).backward()
    assert abs(-log_probs.mean().item() - expected.item()) < 1e-5
    assert torch.equal(torch.bincount(rows, minlength=3), (data["labels"][:, 1:] != -100).sum(1))
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [llama, gemma2])
def test_the_head_proves_itself(build: Any) -> None:
    torch.manual_seed(0)
    loss.prove_head(build(), batch())


def test_a_head_that_does_more_fails_its_proof() -> None:
    torch.manual_seed(0)
    model = gemma2()
    model.config.final_logit_softcapping = None
    kept = model.forward

    def forward(**inputs: Any) -> Any:
        outputs = kept(**inputs)
        outputs.logits = outputs.logits * 3
        return outputs

    model.forward = forward
    with pytest.raises(FidelityError, match="own logits"):
        loss.prove_head(model, batch())
