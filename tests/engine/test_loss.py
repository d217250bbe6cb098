"""Log-probabilities of packed batches equal those of each sequence by itself, for every architecture and every way."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.engine import loss, packing
from llmkit.engine.packing import Stretch
from llmkit.errors import FidelityError

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# Each with what sets it apart: windows shorter than the sequences, caps that bite, norms, fused projections, biases.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 2.0, "sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 5},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
}
PROMPT, CHOSEN, REJECTED = [5, 6, 7, 8], [9, 10, 11, 12, 2], [13, 14, 2]


def build(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, initializer_range=0.3, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config).eval()


def stretches() -> list[Stretch]:
    """A sequence of every length, a pair that shares its prompt, and that prompt scored by itself."""
    alone = [Stretch(range(20, 20 + length), [index % 3 != 1 for index in range(length)]) for length in (2, 9, 14)]
    learnt = [False] * 4 + [True] * 5
    pair = [Stretch(PROMPT + CHOSEN, learnt), Stretch(PROMPT + REJECTED, learnt[:7], of=3, shared=4)]
    return [*alone, *pair, Stretch(PROMPT, [True] * 4, of=3, shared=4)]


def reference(model: Any, parts: Sequence[Stretch]) -> torch.Tensor:
    """Each sequence by itself, through the model's own forward, every logit made."""
    found = []
    for part in parts:
        logits = model(input_ids=torch.tensor([list(part.ids)]), use_cache=False).logits[0].float().log_softmax(-1)
        found += [logits[at - 1, part.ids[at]] for at in range(1, len(part.ids)) if part.scored[at]]
    return torch.stack(found)


def gradients(model: Any, log_probs: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(log_probs))  # each score counts differently
    (log_probs * weights).sum().backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**27])
def test_scores_and_gradients_equal_those_of_each_sequence_alone(
    family: str, packed: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights learn, the head's too."""
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    model, parts = build(family), stretches()
    expected = reference(model, parts)
    wanted = gradients(model, expected)
    with loss.scoring(model, packed=packed):
        found = loss.score(model, packing.pack(parts))
        got = gradients(model, found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(got) == len(wanted) > 0
    for gradient, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("chunk", [1, 700, 2**27])
def test_a_frozen_head_gives_an_adapter_the_same_gradients(family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    options = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model, parts = get_peft_model(build(family), options), stretches()
    wanted = gradients(model, reference(model, parts))
    with loss.scoring(model):
        found = loss.score(model, packing.pack(parts))
        assert "FrozenHead" in str(found.grad_fn)
        got = gradients(model, found)
    for gradient, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_checkpointed_activations_change_nothing(family: str) -> None:
    model, batch = build(family).train(), packing.pack(stretches())
    with loss.scoring(model):
        wanted = gradients(model, loss.score(model, batch))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        got = gradients(model, loss.score(model, batch))
    for gradient, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


def test_every_other_call_and_the_model_afterwards_are_the_models_own() -> None:
    model = build("llama")
    ids = torch.tensor([[3, 4, 5]])
    expected = model(ids).logits
    kept = vars(model).keys() | set()
    with loss.scoring(model), loss.speaking(model):
        assert torch.equal(model(ids).logits, expected)
    assert vars(model).keys() == kept
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, expected)


@given(
    st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=6),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_token_and_scores_those_asked_for(scored: list[list[bool]], data: st.DataObject) -> None:
    parts: list[Stretch] = []
    for index, marks in enumerate(scored):
        of = data.draw(st.integers(0, max(0, index - 1)))
        shared = data.draw(st.integers(0, min(len(marks), len(parts[of].ids)))) if parts else 0
        ids = [*parts[of].ids[:shared], *range(100 * index, 100 * index + len(marks) - shared)] if parts else range(len(marks))
        parts.append(Stretch(list(ids), marks, of, shared))
    batch = packing.pack(parts)
    flat = batch["input_ids"][0]
    attended = [part for part in parts if len(part.ids) > part.shared]
    assert len(flat) == sum(len(part.ids) - part.shared for part in parts)
    for row, length, part in zip(batch["rows"], batch["lengths"], attended, strict=True):
        assert flat[row[:length]].tolist() == list(part.ids)
        assert batch["position_ids"][0][row[:length]].tolist() == list(range(length))
    assert flat[batch["rows"].flatten()[batch["back"]]].tolist() == flat.tolist()
    told = [
        (group, part.ids[at], part.ids[at - 1])
        for group, part in enumerate(parts)
        for at in range(1, len(part.ids))
        if part.scored[at]
    ]
    assert list(zip(batch["groups"].tolist(), batch["targets"].tolist(), flat[batch["sources"]].tolist(), strict=True)) == told


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_prove_themselves(family: str) -> None:
    loss.prove(build(family), packing.pack(stretches()))


def test_a_head_that_does_more_fails_its_proof() -> None:
    model = build("gemma2")
    model.config.final_logit_softcapping = None
    kept = model.forward

    def forward(**inputs: Any) -> Any:
        outputs = kept(**inputs)
        outputs.logits = outputs.logits * 3
        return outputs

    model.forward = forward
    with pytest.raises(FidelityError, match="own logits"):
        loss.prove(model, packing.pack(stretches()))
