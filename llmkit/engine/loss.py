"""Log-probabilities of the tokens to learn, and of no others. Knows models and labels; nothing of trainers.

The output head is applied at labelled positions only: with Gemma's vocabulary of 262,144 it costs more than the rest of
a small model, and most positions (prompts, padding) carry no label.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmkit.engine.mask import IGNORED
from llmkit.errors import FidelityError

CHUNK_ELEMENTS = 2**27  # logits alive at once: 512 MiB in fp32


def labelled_log_probs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability (nats, fp32) of each labelled token and the row it stands in; both of shape (labelled tokens,).

    `model` is a causal language model of transformers, bare or wrapped by peft; `batch` holds `input_ids`,
    `attention_mask` and unshifted `labels`, all (rows, tokens).
    """
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    backbone = causal.base_model
    hidden = backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    rows = labelled.nonzero()[:, 0]
    return _log_probs(causal, hidden[:, :-1][labelled], targets[labelled]), rows


def prove_head(model: Any, batch: dict[str, Tensor], *, tolerance: float = 1e-3) -> None:
    """Fail where the model's own logits give another loss: its head does more than this module knows of.

    `tolerance` (nats a token) is for fp32: bf16 logits differ by tenths with the shape of the product that makes them.

    Raises:
        FidelityError: with both losses.
    """
    with torch.no_grad():
        ours = -labelled_log_probs(model, batch)[0].mean().item()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        targets = batch["labels"][:, 1:]
        theirs = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()
    if not abs(ours - theirs) <= tolerance:
        raise FidelityError(f"the loss at labelled positions is {ours:.4f}, by the model's own logits {theirs:.4f}")


def _log_probs(causal: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    head = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)  # Cohere; Granite

    def score(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float() * scale if scale != 1 else head(states).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return -functional.cross_entropy(logits, wanted, reduction="none")

    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    if len(hidden) <= size:
        return score(hidden, targets)
    # Long batches: recompute each chunk's logits in the backward pass rather than keep them all.
    parts = [
        checkpoint(score, states, wanted, use_reentrant=False)
        for states, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)
