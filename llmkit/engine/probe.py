"""A few fixed sentences to compare two models on, and how to compare them. Knows logits; nothing of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Short, bilingual, with digits, punctuation and emoji: a shift in any part of the network shows on them.
TEXTS = (
    "你好，请用一句话介绍一下你自己。",
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? 🙂",
    "北京是中国的首都。Paris is the capital of France.",
    "def add(a, b):\n    return a + b",
)


@dataclass(frozen=True)
class Difference:
    """How far two models' next-token distributions lie apart.

    `max_abs`: the largest difference of a logit; `kl`: mean KL(reference ‖ other) in nats a token.
    """

    max_abs: float
    kl: float


def logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Next-token logits at every position of every probe text: float32 [length, vocabulary] each, on the CPU."""
    found = []
    # Weights that stay on disk have no device; accelerate then moves what goes in.
    device = "cpu" if model.device.type == "meta" else model.device
    with torch.inference_mode():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]], device=device)
            found.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    return found


def difference(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Difference:
    """Compare what `logits` gave for two models with one vocabulary."""
    largest, total, count = 0.0, 0.0, 0
    for expected, got in zip(reference, other, strict=True):
        largest = max(largest, (expected - got).abs().max().item())
        total += kl(expected, got).sum().item()
        count += len(expected)
    return Difference(largest, total / count)


def kl(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) in nats for each row of two [rows, vocabulary] logit matrices; float32 [rows], good to 1e-6."""
    return kl_of(torch.log_softmax(reference.float(), dim=-1), torch.log_softmax(other.float(), dim=-1))


def kl_of(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """As `kl`, of log-probabilities."""
    # Never below zero in theory; rounding can make it so.
    return (reference.exp() * (reference - other)).sum(-1).clamp_min(0.0)
