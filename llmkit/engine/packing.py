"""Packs token sequences into one row without padding. Knows tokens and attention; nothing of models, losses or trainers.

Everything but attention treats each token alone, so a batch is one row of its tokens. Attention sees them as they stood:
it gathers each sequence's keys and values, and a sequence may begin with tokens of another one, so that the prompt that
two answers share is computed once. Sequences are filled on the right for attention alone, where causality hides the fill.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "llmkit_packed"


class Stretch(NamedTuple):
    """A sequence to pack: its tokens, and which of them are scored (the first cannot be: nothing predicts it).

    Its first `shared` tokens are those of the sequence at index `of`, which stands before it.
    """

    ids: Sequence[int]
    scored: Sequence[bool]
    of: int = 0
    shared: int = 0


def pack(stretches: Sequence[Stretch]) -> dict[str, Tensor]:
    """One packed batch of `stretches`; integers all, with T tokens, R attended sequences of at most L, and N scores.

    Returns:
        input_ids, position_ids: (1, T).
        rows: (R, L), for each sequence the places of its tokens among the T; `lengths`: (R,).
        back: (T,), where each token stands in `rows`, flattened.
        sources: (N,), the place whose output predicts a scored token; targets: (N,), that token.
        groups: (N,), the index of its stretch.
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = []
    homes: list[tuple[int, int]] = []  # of each token: its row, its position there
    rows: list[list[int]] = []
    sources, targets, groups = [], [], []
    for group, stretch in enumerate(stretches):
        own = range(stretch.shared, len(stretch.ids))
        start = len(ids) - stretch.shared
        place = [*(places[stretch.of][: stretch.shared] if stretch.shared else ()), *(start + index for index in own)]
        places.append(place)
        if own:
            homes += [(len(rows), index) for index in own]
            rows.append(place)
        ids += [stretch.ids[index] for index in own]
        positions += own
        for index in range(1, len(stretch.ids)):
            if stretch.scored[index]:
                sources.append(place[index - 1])
                targets.append(stretch.ids[index])
                groups.append(group)
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "rows": torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]),
        "lengths": torch.tensor([len(row) for row in rows]),
        "back": torch.tensor([row * longest + index for row, index in homes]),
        "sources": torch.tensor(sources, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "groups": torch.tensor(groups, dtype=torch.long),
    }


def can_pack(model: Any) -> bool:
    """Whether the model's attention can be replaced by `attention`: one function for all layers, and no sinks."""
    config = model.config.get_text_config()
    return bool(model._supports_sdpa and model._can_set_attn_implementation() and not hasattr(config, "num_sink_tokens"))


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Tensor,
    back: Tensor,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a packed row: query (1, heads, T, d), key and value (1, kv heads, T, d).

    Returns (1, T, heads, d). `softcap` is Gemma 2's; a window is that of transformers: a token sees itself and the
    `sliding_window` - 1 before it.
    """
    longest = rows.shape[1]
    q, k, v = (_gather(states, rows) for states in (query, key, value))
    mask = _window(longest, sliding_window, q.device) if sliding_window and longest > sliding_window else None
    if softcap is None:
        grouped = q.shape[1] != k.shape[1]
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    else:
        out = _softcapped(q, k, v, mask, scaling=scaling, softcap=softcap, dropout=dropout)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, back).unsqueeze(0), None


def _gather(states: Tensor, rows: Tensor) -> Tensor:
    """(1, heads, T, d) → (R, heads, L, d)."""
    # index_select, whose backward is several times faster on a CPU than that of indexing.
    return states[0].transpose(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


def _window(length: int, window: int, device: torch.device) -> Tensor:
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen.triu(1 - window)


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scaling: float, softcap: float, dropout: float
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scaling / softcap)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril() if mask is None else mask
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    return functional.dropout(weights, dropout) @ v


AttentionInterface.register(NAME, attention)
