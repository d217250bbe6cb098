"""Supervised fine-tuning: what a batch is, and its loss. Knows packed batches; nothing of trainers."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, tensor

from llmkit.engine.mask import Encoded
from llmkit.engine.packing import Stretch, pack

DETAILS = "sft: cross-entropy over the assistant's tokens (EOS included), mean over the batch's tokens"


def collate(items: Sequence[Encoded]) -> dict[str, Any]:
    """A packed batch of the items; `counts`: (1,), how many tokens are scored; `ids`: the records, in order."""
    batch = pack([Stretch(item.input_ids, item.labels_mask) for item in items])
    return {**batch, "counts": tensor([len(batch["targets"])]), "ids": [item.record for item in items]}


def loss(log_probs: Tensor, batch: Mapping[str, Any], counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """This part's share of the mean over `counts` (summed over all parts of a batch), in nats a token; and its metrics."""
    return -log_probs.sum() / counts[0], {}
