"""Perplexity and KL: against plain sums over whole log-probability tables, and what a broken model makes of them."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.engine import divergence, loading, templates
from llmkit.engine.mask import Encoded, encode
from llmkit.errors import DataError
from tests.conftest import exchange

NUMBERS = range(1, 24)


@pytest.fixture(scope="module")
def samples(tiny_model: Path) -> list[Encoded]:
    tokenizer, template = loading.load_tokenizer(tiny_model), templates.resolve("chatml", tiny_model)
    return [encode(exchange(number), tokenizer, template, last_only=True) for number in NUMBERS]


@pytest.fixture
def reference(tiny_model: Path, samples: list[Encoded], tmp_path: Path) -> divergence.Reference:
    return divergence.remember(loading.load_model(tiny_model), samples, folder=tmp_path, saved_as=tiny_model)


def changed(folder: Path, by: float) -> Any:
    model = loading.load_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(by * torch.randn_like(one))
    return model


def table(model: Any, samples: list[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """The whole thing at once: log-probabilities [tokens, vocabulary] before each learnt token, and those tokens."""
    rows, labels = [], []
    for sample in samples:
        with torch.inference_mode():
            found = model(torch.tensor([sample.input_ids])).logits[0].double().log_softmax(-1)
        for place in range(1, len(sample.input_ids)):
            if sample.labels_mask[place]:
                rows.append(found[place - 1].numpy())
                labels.append(sample.input_ids[place])
    return np.stack(rows), np.array(labels)


def test_the_numbers_are_those_of_whole_tables(
    tiny_model: Path, samples: list[Encoded], reference: divergence.Reference
) -> None:
    """Each as llama-perplexity defines it."""
    model = changed(tiny_model, 0.02)
    (expected, labels), (got, _) = table(loading.load_model(tiny_model), samples), table(model, samples)
    every = np.arange(len(labels))
    kl = (np.exp(expected) * (expected - got)).sum(-1)
    right, ours = expected[every, labels], got[every, labels]
    found = divergence.measure(model, reference)
    assert found.tokens == len(labels) == reference.divergence.tokens
    near = {"rel": 1e-4, "abs": 1e-6}
    assert reference.perplexity == pytest.approx(math.exp(-right.mean()), **near)
    assert found.perplexity == pytest.approx(math.exp(-ours.mean()), **near)
    assert found.mean == pytest.approx(kl.mean(), **near)
    assert found.mean_error == pytest.approx(math.sqrt(((kl**2).mean() - kl.mean() ** 2) / (len(kl) - 1)), **near)
    assert found.median == pytest.approx(np.median(kl), **near)
    assert found.p99 == pytest.approx(np.percentile(kl, 99), **near)
    assert found.same_top == (expected.argmax(-1) == got.argmax(-1)).mean()
    assert found.rms_dp == pytest.approx(math.sqrt(((np.exp(ours) - np.exp(right)) ** 2).mean()), **near)
    assert found.log_perplexity_ratio == pytest.approx(math.log(found.perplexity / reference.perplexity), **near)
    covariance = np.cov(right, ours)
    paired = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert found.log_perplexity_ratio_error == pytest.approx(math.sqrt(paired / len(kl)), **near)


def test_a_model_does_not_diverge_from_itself(tiny_model: Path, reference: divergence.Reference) -> None:
    found = divergence.measure(loading.load_model(tiny_model), reference)
    assert found.mean < 1e-6
    assert found.same_top == 1
    assert abs(found.log_perplexity_ratio) < 1e-6
    assert found.perplexity == pytest.approx(reference.divergence.perplexity, rel=1e-6)


def test_more_noise_diverges_more(tiny_model: Path, reference: divergence.Reference) -> None:
    found = [divergence.measure(changed(tiny_model, by), reference) for by in (0.005, 0.02, 0.08)]
    for name in ("mean", "median", "p99", "rms_dp"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values), name


def test_batches_and_chunks_change_nothing(
    tiny_model: Path, samples: list[Encoded], reference: divergence.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = changed(tiny_model, 0.02)
    before = divergence.measure(model, reference)
    for name, value in {"CHUNK": 3, "BATCH": 2, "BATCH_TOKENS": 40}.items():
        monkeypatch.setattr(divergence, name, value)
    after = divergence.measure(model, reference)
    assert vars(after) == pytest.approx(vars(before), rel=1e-4, abs=1e-6)


def test_no_table_of_all_tokens_is_ever_made(
    tiny_model: Path, reference: divergence.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = []
    real = divergence.Head.__call__

    def watch(self: divergence.Head, hidden: torch.Tensor) -> torch.Tensor:
        heights.append(len(hidden))
        return real(self, hidden)

    monkeypatch.setattr(divergence.Head, "__call__", watch)
    monkeypatch.setattr(divergence, "CHUNK", 5)
    divergence.measure(loading.load_model(tiny_model), reference)
    assert max(heights) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_shows(tiny_model: Path, reference: divergence.Reference, value: float) -> None:
    model = loading.load_model(tiny_model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    found = divergence.measure(model, reference)
    assert not math.isfinite(found.mean)
    assert not math.isfinite(found.perplexity)
    assert not math.isfinite(found.p99)
    assert found.same_top == 0


def test_a_confident_mistake_is_an_infinite_perplexity_and_no_crash(tiny_model: Path, reference: divergence.Reference) -> None:
    model = loading.load_model(tiny_model)
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    found = divergence.measure(model, reference)
    assert found.perplexity == math.inf
    assert math.isfinite(found.mean)


def test_vocabularies_must_be_of_one_size(tiny_model: Path, reference: divergence.Reference) -> None:
    model = loading.load_model(tiny_model)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    with pytest.raises(DataError, match="vocabularies"):
        divergence.measure(model, reference)


def test_logits_that_are_more_than_the_output_layers_are_refused(
    tiny_model: Path, reference: divergence.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture with a factor that is not known here must not get numbers that look right."""
    model = loading.load_model(tiny_model)
    real = type(model).forward

    def scaled(self: Any, *args: Any, **inputs: Any) -> Any:
        out = real(self, *args, **inputs)
        out.logits = out.logits * 3
        return out

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(DataError, match="cannot be measured"):
        divergence.measure(model, reference)


def test_without_an_answer_there_is_nothing_to_measure(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answer"):
        divergence.remember(loading.load_model(tiny_model), [], folder=tmp_path, saved_as=tiny_model)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_architectures_that_cap_or_scale_their_logits_are_known(
    name: str, tiny_model: Path, samples: list[Encoded], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"gemma2": {"head_dim": 16, "final_logit_softcapping": 5.0}, "granite": {"logits_scaling": 4.0}, "cohere": {}}
    config = AutoConfig.for_model(
        name, vocab_size=448, num_key_value_heads=2, bos_token_id=None, eos_token_id=0, pad_token_id=0, **shape, **special[name]
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    model = loading.load_model(tmp_path / "model")
    kept = divergence.remember(model, samples, folder=tmp_path, saved_as=tmp_path / "model")
    rows, labels = table(model, samples)
    assert kept.perplexity == pytest.approx(math.exp(-rows[np.arange(len(labels)), labels].mean()), rel=1e-4)
    assert divergence.measure(model, kept).mean < 1e-6
