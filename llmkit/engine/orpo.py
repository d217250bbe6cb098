"""ORPO behind one module: TRL's experimental trainer, fed our tokens. Its interface may change; only this file knows it.

From TRL: the odds-ratio loss and its metrics. Ours: tokens and masks, log-probabilities at labelled positions only, and
the NLL term over the chosen answer alone (TRL's covers the prompt as well). Hong et al. 2024, arXiv:2403.07691.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmkit.engine.loss import labelled_log_probs
from llmkit.engine.mask import Pair
from llmkit.engine.sft import collate as collate_encoded
from llmkit.engine.trainers import Laid, LocalTrainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "experimental"
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

OBJECTIVE = (
    "orpo: NLL of the chosen answer's tokens (EOS included; the prompt is not in it) "
    "- beta * log sigmoid(log odds ratio), log-probabilities averaged per answer token"
)
# log(1 - p) of a mean log-probability that rounds to 0 has an infinite gradient.
_MOST_CERTAIN = -1e-6


def collate(items: Sequence[Pair]) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels: (2 · items, longest), the chosen rows first."""
    return collate_encoded([item.chosen for item in items] + [item.rejected for item in items])


def build(model: Any, data: Laid, tokenizer: Any, *, arguments: dict[str, Any], bf16: bool, beta: float) -> Any:
    """A trainer ready to `train()`."""
    # disable_dropout would silently switch off the dropout that the LoRA was asked for.
    config = ORPOConfig(**arguments, beta=beta, disable_dropout=False)
    trainer = _Trainer(model=model, args=config, train_dataset=data, data_collator=collate, processing_class=tokenizer)
    trainer.bf16 = bf16
    return trainer


class _Trainer(LocalTrainer, ORPOTrainer):
    bf16 = False

    def concatenated_forward(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Mean log-probability of each chosen and each rejected answer, logits that TRL only averages, and the NLL."""
        self._count(batch["attention_mask"])
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=self.bf16):
            log_probs, rows = labelled_log_probs(model, batch)
        pairs = len(batch["input_ids"]) // 2
        sums = log_probs.new_zeros(2 * pairs).index_add(0, rows, log_probs)
        means = (sums / torch.bincount(rows, minlength=2 * pairs)).clamp(max=_MOST_CERTAIN)
        nll = -log_probs[rows < pairs].mean()
        unused = log_probs.new_zeros(1)
        return means[:pairs], means[pairs:], unused, unused, nll
