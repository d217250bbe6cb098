"""One batch of prompts and what follows them: the same as transformers' own loop, whatever shares the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from llmkit.answers import Decoding
from llmkit.engine import decode, loading

STOPS = [0, 2]
VOCABULARY = 60
Prompts = st.lists(st.lists(st.integers(3, 400), min_size=1, max_size=20), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """A tiny Llama whose answers end sooner or later."""
    found = loading.load_model(tiny_model)
    with torch.no_grad():
        found.lm_head.weight[2] += 0.7 * found.lm_head.weight[3:40].mean(0) / found.lm_head.weight[3:40].mean(0).norm()
    return found


def said(model: Any, prompts: list[list[int]], **options: Any) -> list[decode.Decoded]:
    decoding = Decoding(**{"max_new_tokens": 12, **options})
    return decode.decode(model, prompts, decoding=decoding, stops=STOPS, seeds=[(decoding.seed, *prompt) for prompt in prompts])


@given(prompts=Prompts)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_greedy_says_what_transformers_says(model: Any, prompts: list[list[int]]) -> None:
    for prompt, one in zip(prompts, said(model, prompts), strict=True):
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=STOPS,
            pad_token_id=0,
        )
        assert one.ids == out[0, len(prompt) :].tolist()


def test_some_answers_end_before_others(model: Any) -> None:
    """What the other tests stand on: rows leave the batch at different steps."""
    lengths = {len(one.ids) for one in said(model, [[number] for number in range(3, 120)])}
    assert len(lengths) > 2


@given(prompts=Prompts, options=st.sampled_from([{}, {"temperature": 1.3}, {"temperature": 0.7, "top_p": 0.8}, {"beams": 3}]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_depends_on_the_others(model: Any, prompts: list[list[int]], options: dict[str, Any]) -> None:
    together = said(model, prompts, **options)
    alone = [said(model, [prompt], **options)[0] for prompt in prompts]
    assert [one.ids for one in together] == [one.ids for one in alone]


@given(prompts=Prompts)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_log_probability_is_the_mean_over_the_answer(model: Any, prompts: list[list[int]]) -> None:
    for prompt, one in zip(prompts, said(model, prompts, temperature=1.0), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *one.ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert one.log_probability == pytest.approx(float(logits.gather(-1, torch.tensor(one.ids)[:, None]).mean()), abs=1e-5)


def test_another_seed_draws_other_answers(model: Any) -> None:
    prompts = [[number] for number in range(3, 23)]
    first, again, other = (said(model, prompts, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert [one.ids for one in first] == [one.ids for one in again]
    assert [one.ids for one in first] != [one.ids for one in other]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_follow_the_distribution(top_p: float) -> None:
    """20,000 draws from one distribution: each token as often as it should be, and none outside the nucleus."""
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    expected = (logits / 0.8).softmax(-1)[0]
    order = expected.argsort(descending=True)
    outside = order[(expected[order].cumsum(-1) - expected[order]) >= top_p]
    expected[outside] = 0
    expected /= expected.sum()
    draws = torch.linspace(0, 1, 20_001)[:-1]
    chosen = decode.choose(logits.expand(20_000, -1), Decoding(1, temperature=0.8, top_p=top_p), draws)
    found = torch.bincount(chosen, minlength=VOCABULARY) / 20_000
    assert float((found - expected).abs().max()) < 1e-3
    assert not found[outside].any()


def test_a_flat_distribution_is_not_cut_at_the_tokens_looked_at_first() -> None:
    size = 4 * decode.NUCLEUS
    draws = torch.tensor([0.0, 0.5, 0.999])
    chosen = decode.choose(torch.zeros(3, size), Decoding(1, temperature=1.0, top_p=0.9), draws)
    assert len(set(chosen.tolist())) == 3
    _, tokens = decode._nucleus(torch.full((1, size), 1 / size), 0.9)
    assert tokens.shape[-1] == size


def test_a_model_of_nan_still_ends(model: Any, tiny_model: Path) -> None:
    broken = loading.load_model(tiny_model)
    with torch.no_grad():
        broken.lm_head.weight[:] = float("nan")
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}):
        for one in said(broken, [[5, 6], [7]], **options):
            assert 1 <= len(one.ids) <= 12
            assert one.log_probability is not None
            assert one.log_probability != one.log_probability


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_what_a_published_model_would_have_added_is_left_out(model: Any, options: dict[str, Any]) -> None:
    """Qwen's generation_config.json, for one, holds a repetition penalty: recorded settings would not tell of it."""
    prompts = [[5, 6, 7], [9, 8, 7, 6]]
    plain = [one.ids for one in said(model, prompts, **options)]
    published = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=20.0, no_repeat_ngram_size=1, min_new_tokens=11)
    try:
        assert [one.ids for one in said(model, prompts, **options)] == plain
        assert model.generation_config.repetition_penalty == 20.0
    finally:
        model.generation_config = published
