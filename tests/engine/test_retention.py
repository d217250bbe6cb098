"""Weights from elsewhere in a model's architecture: their divergence, their next tokens, their benchmarks."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.engine import child, harness, loading, measure, retention, templates
from llmkit.engine.mask import encode
from tests.conftest import exchange
from tests.training import Tally

SPOKEN = ([5, 6, 7], [8, 9])


def weights(folder: Path, noise: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    found = loading.load_model(folder).state_dict()
    return {name: weight + noise * torch.randn_like(weight) for name, weight in found.items()}


@pytest.fixture
def against(tiny_model: Path, tmp_path: Path) -> Any:
    tokenizer, template = loading.load_tokenizer(tiny_model), templates.resolve("chatml", tiny_model)
    samples = [encode(exchange(number), tokenizer, template, last_only=True) for number in range(5)]
    return retention.remember(tiny_model, samples, tiny_model, tmp_path, Tally())


def test_the_model_itself_keeps_all_of_it(tiny_model: Path, against: Any) -> None:
    reference, base_kl = against
    assert base_kl < 1e-6
    same = child.run(retention.weigh, partial(weights, tiny_model, 0.0), tiny_model, None, reference, SPOKEN, title="")
    assert same.divergence.mean == same.kl < 1e-6
    assert same.divergence.perplexity == pytest.approx(reference.perplexity, rel=1e-5)
    assert [one.ids for one in same.next_tokens] == [tuple(ids) for ids in SPOKEN]
    assert same.tasks is None


def test_less_exact_weights_keep_less(tiny_model: Path, against: Any) -> None:
    reference, _ = against
    found = [
        retention.weigh(partial(weights, tiny_model, noise), tiny_model, None, reference, (), Tally()).kl
        for noise in (0.003, 0.01, 0.03)
    ]
    assert found == sorted(found)
    assert found[0] > 0


def test_without_a_reference_only_next_tokens_are_found(tiny_model: Path) -> None:
    found = retention.weigh(partial(weights, tiny_model, 0.0), tiny_model, None, None, SPOKEN, Tally())
    assert (found.divergence, found.kl) == (None, None)
    assert len(found.next_tokens) == 2


def test_an_exams_benchmarks_are_done_with_these_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "evaluate_tasks", lambda model, tokenizer, **given: {"t": {"acc": float(len(given))}})
    exam = measure.Exam([], [], templates.resolve("chatml", tiny_model), tasks={"tasks": ["t"], "limit": 1})
    found = retention.weigh(partial(weights, tiny_model, 0.0), tiny_model, None, None, (), Tally(), exam=exam)
    assert found.tasks == {"t": {"acc": 3.0}}
