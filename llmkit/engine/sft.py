"""Supervised fine-tuning: TRL's trainer with the loss computed at the assistant's tokens only."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from llmkit.engine.loss import labelled_log_probs
from llmkit.engine.mask import IGNORED, Encoded
from llmkit.engine.trainers import Laid, LocalTrainer, padded

OBJECTIVE = "sft: cross-entropy over the assistant's tokens (EOS included), mean over the batch's tokens"


def collate(items: Sequence[Encoded]) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels: (items, longest item). The fill is token 0; it is masked and unlabelled."""
    return {
        "input_ids": padded([item.input_ids for item in items], 0),
        "attention_mask": padded([[1] * len(item.input_ids) for item in items], 0),
        "labels": padded([item.labels for item in items], IGNORED),
    }


def build(model: Any, data: Laid, tokenizer: Any, *, arguments: dict[str, Any], bf16: bool) -> Any:
    """A trainer ready to `train()`."""
    config = SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    # TRL takes one dataset class only, and one that it would copy; ours replaces this stand-in before it is read.
    stand_in = datasets.Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
    trainer = _Trainer(model=model, args=config, train_dataset=stand_in, data_collator=collate, processing_class=tokenizer)
    trainer.train_dataset = data
    trainer.bf16 = bf16
    trainer.model_accepts_loss_kwargs = True  # so that num_items_in_batch spans accumulated micro-batches
    return trainer


class _Trainer(LocalTrainer, SFTTrainer):
    loss_is_scaled_for_ga = True
    bf16 = False

    # TRL's own loss scores every position on a CPU, prompts and padding included.
    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        self._count(inputs["attention_mask"])
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self.bf16):
            log_probs, _ = labelled_log_probs(model, inputs)
        return -log_probs.sum() / num_items_in_batch
