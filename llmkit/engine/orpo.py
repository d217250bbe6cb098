"""Odds-ratio preference optimization: what a batch of pairs is, and its loss. Knows packed batches; nothing of trainers.

Hong et al. 2024, arXiv:2403.07691, equations 3, 6 and 7. The two answers of a pair follow one copy of their prompt.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from llmkit.engine.mask import Pair
from llmkit.engine.packing import Stretch, pack

NllOn = Literal["response", "full"]
DETAILS = {
    "response": "orpo: NLL of the chosen answer, averaged over its tokens, then over pairs (as LLaMA-Factory does)",
    "full": "orpo: NLL of prompt and chosen answer, averaged over the batch's tokens (as TRL does)",
}
ODDS = " - beta * log sigmoid(log odds ratio), log-probabilities averaged per answer token (EOS included)"
# At a mean log-probability that rounds to 0 the log odds and their gradient are infinite.
_MOST_CERTAIN = -1e-6


def collate(items: Sequence[Pair], *, nll_on: NllOn) -> dict[str, Any]:
    """A packed batch; groups are the chosen answers, then the rejected ones, then, for `full`, the prompts.

    `counts`: (2,), how many pairs there are, and how many tokens `full` averages over; `ids`: the records, in order.
    """
    chosen = [Stretch(item.chosen.input_ids, item.chosen.labels_mask) for item in items]
    rejected = [
        Stretch(item.rejected.input_ids, item.rejected.labels_mask, index, _overlap(item)) for index, item in enumerate(items)
    ]
    prompts = []
    if nll_on == "full":
        for index, item in enumerate(items):
            unlearnt = [not learnt for learnt in item.chosen.labels_mask]
            ids = item.chosen.input_ids
            prompts.append(Stretch(ids, unlearnt, index, len(ids)))
    batch = pack([*chosen, *rejected, *prompts])
    tokens = (batch["groups"] // len(items) != 1).sum()
    records = [item.chosen.record for item in items]
    return {**batch, "counts": torch.stack([torch.tensor(len(items)), tokens]), "ids": records}


def loss(
    log_probs: Tensor, batch: Mapping[str, Any], counts: Tensor, *, beta: float, nll_on: NllOn
) -> tuple[Tensor, dict[str, Tensor]]:
    """This part's share of the batch's loss, and of its metrics; `counts` is summed over all parts of the batch."""
    groups, pairs = batch["groups"], int(batch["counts"][0])
    sums = log_probs.new_zeros(2 * pairs).index_add(0, groups[groups < 2 * pairs], log_probs[groups < 2 * pairs])
    means = sums / torch.bincount(groups, minlength=2 * pairs)[: 2 * pairs]
    chosen, rejected = means.clamp(max=_MOST_CERTAIN).chunk(2)
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    full = nll_on == "full"
    nll = -log_probs[groups // pairs != 1].sum() / counts[1] if full else -means[:pairs].sum() / counts[0]
    with torch.no_grad():
        margins = beta * (chosen - rejected)
        shares = {"nll": nll, "rewards_margin": margins.sum() / counts[0], "rewards_accuracy": (margins > 0).sum() / counts[0]}
    return nll - beta * functional.logsigmoid(log_odds).sum() / counts[0], shares


def _overlap(item: Pair) -> int:
    """How many tokens the two sides share before either answer begins."""
    chosen, rejected = item.chosen, item.rejected
    most = min(chosen.labels_mask.index(True), rejected.labels_mask.index(True))
    same = (a == b for a, b in zip(chosen.input_ids[:most], rejected.input_ids[:most], strict=True))
    return next((index for index, alike in enumerate(same) if not alike), most)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without loss of digits at either end (Mächler 2012)."""
    near = x > -math.log(2)
    # `where` passes gradients through both branches, so each sees only what it can bear.
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )
