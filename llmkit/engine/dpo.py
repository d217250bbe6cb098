"""DPO on TRL's trainer, fed our tokens, and what every objective with a reference model shares. Knows TRL; nothing of recipes.

From TRL: the losses, their log-probabilities in chunks, their metrics. Ours: tokens and masks, order, checkpoints, and that
nothing which is shipped (tokenizer, configurations, the adapter's precision) is changed on the way.

The reference is the model as it came in: the frozen base where the adapter is fresh (the adapter is switched off, no weight
is copied), a frozen copy of the adapter where it was trained before, a frozen copy of the model where there is no adapter.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer

from llmkit.engine import distributed
from llmkit.engine.mask import Encoded, Pair
from llmkit.engine.trainers import Laid, LocalTrainer
from llmkit.errors import UsageError

DETAILS = (
    "dpo: - log sigmoid(beta * (log-ratio of the chosen answer - log-ratio of the rejected one)), mean over the batch's pairs; "
    "log-ratio: log-probability of the answer's tokens (EOS included), summed, model minus reference"
)
_REFERENCE = "ref"  # TRL's name for it


def collate(items: Sequence[Pair]) -> dict[str, Tensor]:
    """input_ids, attention_mask, completion_mask: (2 · items, longest), the chosen rows first."""
    return filled([item.chosen for item in items] + [item.rejected for item in items])


def build(model: Any, data: Laid[Pair], tokenizer: Any, *, arguments: dict[str, Any], bf16: bool, beta: float) -> Any:
    """A trainer ready to `train()`: sigmoid loss, eq. 7 of Rafailov et al. 2023, arXiv:2305.18290.

    Raises:
        UsageError: the adapter sits on the output head.
    """
    # disable_dropout would silently switch off the dropout that the LoRA was asked for.
    config = DPOConfig(**arguments, beta=beta, max_length=None, disable_dropout=False)
    return assembled(_Trainer, model, data, tokenizer, config=config, collate=collate, bf16=bf16)


def filled(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """input_ids, attention_mask, completion_mask (1 where a token is learnt): (rows, longest). The fill is token 0, masked."""
    columns: dict[str, list[Any]] = {
        "input_ids": [row.input_ids for row in rows],
        "attention_mask": [[1] * len(row.input_ids) for row in rows],
        "completion_mask": [row.labels_mask for row in rows],
    }
    return {
        name: pad_sequence([torch.tensor(row, dtype=torch.long) for row in column], batch_first=True)
        for name, column in columns.items()
    }


def assembled(kind: Any, model: Any, data: Laid[Any], tokenizer: Any, *, config: Any, collate: Any, bf16: bool) -> Any:
    """A trainer of `kind`, a `Referenced` one before one of TRL's, over `data`, its reference in place.

    Raises:
        UsageError: the adapter sits on the output head.
    """
    distributed.settle(config)
    adapted = hasattr(model, "peft_config")
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        # TRL multiplies by the head's weight itself, so an adapter there would never be trained.
        raise UsageError(
            "an adapter on the output head cannot be trained by dpo or kto", code="LK0409", next="leave it out of lora.targets"
        )
    # TRL takes one dataset class only, and one that it would copy; ours replaces this stand-in before it is read.
    stand_in = datasets.Dataset.from_dict({"input_ids": [[0]]})
    _still(model)
    with _as_it_was(model, tokenizer):
        trainer = kind(
            model=model,
            ref_model=None if adapted else copy.deepcopy(model).eval().requires_grad_(False),
            args=config,
            train_dataset=stand_in,
            data_collator=collate,
            processing_class=tokenizer,
        )
    trainer.train_dataset = data
    trainer.processing_class = None  # transformers would write its special tokens into the model's configuration
    trainer.bf16 = bf16
    if adapted and _is_fresh(model):
        model.delete_adapter(_REFERENCE)  # TRL's copy of an adapter that does nothing yet: the base says the same
    return trainer


class Referenced(LocalTrainer):
    """Mixed in before a TRL trainer that weighs a model against its reference."""

    bf16 = False

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # TRL would tokenize it

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss of a batch made by the trainer's `data_collator`; in eval mode nothing of it reaches the log."""
        if model.training:
            self._count(inputs["attention_mask"])
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self.bf16):
            loss: Tensor = super().compute_loss(model, inputs)  # type: ignore[misc]
        self._metrics["eval"].clear()  # type: ignore[attr-defined]
        return loss


class _Trainer(Referenced, DPOTrainer):
    pass


@contextmanager
def _as_it_was(model: Any, tokenizer: Any) -> Iterator[None]:
    """TRL gives tokenizer and model a padding token, and rounds an adapter over a 4-bit base to bf16: undo both."""
    configs = [model.config.get_text_config(), model.generation_config]
    pads = [config.pad_token_id for config in configs]
    token = tokenizer.pad_token
    trained = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    try:
        yield
    finally:
        for config, pad in zip(configs, pads, strict=True):
            config.pad_token_id = pad
        tokenizer.pad_token = token
        for weight, data in trained:
            if weight.dtype != data.dtype:
                weight.data = data.to(weight.device)


def _still(model: Any) -> None:
    """Switch off the base's own dropout, under which a reference is never the same twice; the adapter's stays."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        elif getattr(module, "attention_dropout", 0.0):
            module.attention_dropout = 0.0


def _is_fresh(model: Any) -> bool:
    """Whether the adapter changes nothing yet: one factor of every product is zero."""
    zeros = ("lora_B.default", "lora_embedding_A.default")
    return not any(weight.any() for name, weight in model.named_parameters() if any(zero in name for zero in zeros))
