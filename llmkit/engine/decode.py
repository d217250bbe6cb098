"""Token ids in, the tokens that follow out, for one batch of prompts. Knows a model's forward pass; nothing of texts or files.

A row that has stopped leaves the batch: transformers' own loop computes it on until the longest row ends, which on short
answers is most of the work. A sampled row draws from a generator of its own, so what it says depends on no other row.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

from llmkit.answers import Decoding

# The likeliest tokens that a nucleus is looked for in before the whole vocabulary is sorted.
NUCLEUS = 1024


@dataclass(frozen=True)
class Decoded:
    """`ids`: what was generated, an EOS included; `log_probability`: the mean of its tokens', None under beam search."""

    ids: list[int]
    log_probability: float | None


def decode(
    model: Any, prompts: Sequence[Sequence[int]], *, decoding: Decoding, stops: Sequence[int], seeds: Sequence[Sequence[int]]
) -> list[Decoded]:
    """Go on from each of `prompts` (left-padded, so that all go on at the same place) until a token of `stops`.

    Args:
        model: a causal language model of transformers.
        decoding: its `seed` is not read.
        seeds: what each row's draws depend on; moot without sampling.

    Raises:
        torch.OutOfMemoryError, RuntimeError: the batch does not fit in memory.
    """
    way = _beams if decoding.beams > 1 else _step_by_step
    with torch.inference_mode():
        return way(model, prompts, decoding, stops, seeds)


def _step_by_step(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, stops: Sequence[int], seeds: Sequence[Sequence[int]]
) -> list[Decoded]:
    ids, seen = _padded(prompts, model.device)
    ends = torch.tensor(list(stops), device=model.device)
    draws = _draws(seeds, decoding, model.device)
    cache = DynamicCache(config=model.config)
    options = _options(model)
    rows = torch.arange(len(prompts), device=model.device)
    found: list[list[int]] = [[] for _ in prompts]
    sums = torch.zeros(len(prompts), device=model.device)
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    for step in range(decoding.max_new_tokens):
        out = model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True, **options
        )
        logits = out.logits[:, -1].float()
        chosen = choose(logits, decoding, draws[rows, step] if draws is not None else None)
        sums[rows] += logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            found[row].append(token)
        going = (~torch.isin(chosen, ends)).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            rows, chosen, positions, seen = rows[going], chosen[going], positions[going], seen[going]
            cache.reorder_cache(going)  # meant for beams; that fewer rows come out than went in is all the same to it
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], -1)
    return [Decoded(new, total / len(new)) for new, total in zip(found, sums.tolist(), strict=True)]


def _beams(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, stops: Sequence[int], seeds: Sequence[Sequence[int]]
) -> list[Decoded]:
    """Beam search is transformers' own, without what a published model's generation_config.json would add: penalties, say."""
    ids, seen = _padded(prompts, model.device)
    published, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=decoding.beams,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
        )
    finally:
        model.generation_config = published
    return [Decoded(_cut(row, stops), None) for row in out[:, ids.shape[1] :].tolist()]


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, seen


def _options(model: Any) -> dict[str, Any]:
    # Of the prompt's logits the last row alone is needed; the others would be [rows, tokens, vocabulary].
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's own takes anything
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(plain).forward).parameters else {}


def _draws(seeds: Sequence[Sequence[int]], decoding: Decoding, device: torch.device) -> torch.Tensor | None:
    """A number in [0, 1) for each row and step, float32 [rows, steps]; None where nothing is drawn."""
    if not decoding.temperature:
        return None
    rows = [np.random.default_rng(list(seed)).random(decoding.max_new_tokens, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).to(device)


def choose(logits: torch.Tensor, decoding: Decoding, draws: torch.Tensor | None) -> torch.Tensor:
    """The next token of each row: the likeliest, or the one that its draw falls on (inverse transform sampling)."""
    if draws is None:
        return logits.argmax(-1)
    probabilities = (logits / decoding.temperature).softmax(-1)
    if decoding.top_p >= 1:
        return _fall(probabilities, draws)
    masses, tokens = _nucleus(probabilities, decoding.top_p)
    return tokens.gather(-1, _fall(masses, draws)[:, None])[:, 0]


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest likeliest tokens that hold `top_p` (Holtzman et al. 2020, arXiv:1904.09751): masses, 0 outside, and ids."""
    size = probabilities.shape[-1]
    for count in (min(NUCLEUS, size), size):
        masses, tokens = probabilities.topk(count)
        before = masses.cumsum(-1) - masses
        if bool((before[:, -1] >= top_p).all()):
            break
    return masses.where(before < top_p, 0.0), tokens


def _fall(masses: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The column of each row that its draw, a share of the row's whole mass, falls on."""
    edges = masses.double().cumsum(-1)
    column = torch.searchsorted(edges, draws.double()[:, None] * edges[:, -1:], right=True)[:, 0]
    return column.clamp_max(masses.shape[-1] - 1)


def _cut(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return ids if end is None else ids[: end + 1]
