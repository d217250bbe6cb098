"""ORPO against its oracles: TRL's trainer for `full`, LLaMA-Factory's definition for `response`, and the limits of floats."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmkit.engine import loss, orpo
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.mask import IGNORED, Encoded, Pair
from llmkit.engine.trainers import padded

BETA = 0.3
DRAW = random.Random(5)


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    def side(answer: int) -> Encoded:
        return Encoded([*start, *(DRAW.randrange(3, 300) for _ in range(answer)), 2], [False] * prompt + [True] * (answer + 1))

    start = [DRAW.randrange(3, 300) for _ in range(prompt)]
    return Pair(side(chosen), side(rejected))


PAIRS = [pair(9, 5, 8), pair(3, 12, 1), pair(17, 2, 2), pair(1, 7, 20)]


def gradients(model: Any, value: Tensor) -> list[Tensor]:
    model.zero_grad()
    value.backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def ours(model: Any, pairs: Sequence[Pair], *, nll_on: orpo.NllOn, packed: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    batch = orpo.collate(pairs, nll_on=nll_on)
    with loss.scoring(model, packed=packed):
        return orpo.loss(loss.score(model, batch), batch, batch["counts"], beta=BETA, nll_on=nll_on)


def of_llama_factory(model: Any, pairs: Sequence[Pair]) -> Tensor:
    """Its trainer's definition: mean log-probabilities of the answers; minus the chosen one's is the likelihood term."""

    def mean(side: Encoded) -> Tensor:
        logits = model(input_ids=torch.tensor([side.input_ids])).logits[0, :-1]
        labels = torch.tensor(side.labels[1:])
        return -functional.cross_entropy(logits, labels, ignore_index=IGNORED)

    chosen, rejected = torch.stack([mean(item.chosen) for item in pairs]), torch.stack([mean(item.rejected) for item in pairs])
    odds = chosen - rejected - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    return (-chosen + BETA * -functional.logsigmoid(odds)).mean()


def of_trl(model: Any, pairs: Sequence[Pair], tokenizer: Any, out: Path) -> tuple[Tensor, dict[str, float]]:
    """TRL's own trainer on the same tokens."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = ORPOTrainer(
        model=model,
        args=ORPOConfig(output_dir=str(out), beta=BETA, report_to="none", use_cpu=True, disable_dropout=False),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=tokenizer,
    )
    batch = {}
    for name in ("chosen", "rejected"):
        sides = [getattr(item, name) for item in pairs]
        batch[f"{name}_input_ids"] = padded([side.input_ids for side in sides], 0)
        batch[f"{name}_attention_mask"] = padded([[1] * len(side.input_ids) for side in sides], 0)
        batch[f"{name}_labels"] = padded([side.labels for side in sides], IGNORED)
    found: tuple[Tensor, dict[str, float]] = trainer.get_batch_loss_metrics(model, batch)
    return found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**27])
def test_response_equals_llama_factory(packed: bool, chunk: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    model = load_model(tiny_model)
    expected = of_llama_factory(model, PAIRS)
    wanted = gradients(model, expected)
    found, _ = ours(model, PAIRS, nll_on="response", packed=packed)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for gradient, other in zip(gradients(model, found), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**27])
def test_full_equals_trl(packed: bool, chunk: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk)
    model = load_model(tiny_model)
    expected, metrics = of_trl(model, PAIRS, load_tokenizer(tiny_model), tmp_path)
    wanted = gradients(model, expected)
    found, shares = ours(model, PAIRS, nll_on="full", packed=packed)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, theirs in {
        "nll": "nll_loss",
        "rewards_margin": "rewards/margins",
        "rewards_accuracy": "rewards/accuracies",
    }.items():
        assert shares[name].item() == pytest.approx(float(metrics[theirs]), abs=1e-5)
    for gradient, other in zip(gradients(model, found), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nll_on", ["response", "full"])
def test_parts_of_a_batch_add_up_to_it(nll_on: orpo.NllOn, tiny_model: Path) -> None:
    """Micro-batches and processes see the counts of the whole batch."""
    model = load_model(tiny_model)
    whole, shares = ours(model, PAIRS, nll_on=nll_on)
    parts = [orpo.collate(PAIRS[:1], nll_on=nll_on), orpo.collate(PAIRS[1:], nll_on=nll_on)]
    counts = parts[0]["counts"] + parts[1]["counts"]
    with loss.scoring(model):
        found = [orpo.loss(loss.score(model, part), part, counts, beta=BETA, nll_on=nll_on) for part in parts]
    assert sum(value.item() for value, _ in found) == pytest.approx(whole.item(), abs=1e-6)
    for name, value in shares.items():
        assert sum(part[name].item() for _, part in found) == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize("mean", [0.0, -1e-9, -1e-4, -0.69, -0.70, -30.0, -1000.0])
def test_loss_and_gradient_are_finite_at_the_ends_of_probability(mean: float) -> None:
    batch = orpo.collate([Pair(Encoded([1, 2], [False, True]), Encoded([1, 3], [False, True]))], nll_on="response")
    for other in (-1e-9, -2.0, -1000.0):
        scores = torch.tensor([mean, other], requires_grad=True)
        value, _ = orpo.loss(scores, batch, batch["counts"], beta=BETA, nll_on="response")
        value.backward()
        assert scores.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(scores.grad).all()


def test_the_prompt_of_a_pair_stands_once_in_its_batch() -> None:
    batch = orpo.collate(PAIRS, nll_on="full")
    prompts = sum(item.chosen.labels_mask.index(True) for item in PAIRS)
    answers = sum(len(side.input_ids) for item in PAIRS for side in (item.chosen, item.rejected)) - 2 * prompts
    assert batch["input_ids"].numel() == prompts + answers
    assert len(batch["targets"]) == prompts - len(PAIRS) + answers  # the first token of each is predicted by nothing
    assert orpo.collate(PAIRS, nll_on="response")["targets"].tolist() == batch["targets"][:answers].tolist()
