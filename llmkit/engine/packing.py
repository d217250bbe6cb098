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
SHORT = 192  # tokens up to which a CPU is faster by the definition of attention than by its fused kernel, backward above all


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
    # Rotary embeddings in fp32 leave queries and keys so; autocast would round them after they are gathered.
    q, k, v = (_gather(states.to(value.dtype), rows) for states in (query, key, value))
    windowed = bool(sliding_window and longest > sliding_window)
    if softcap is None and not (q.device.type == "cpu" and longest <= SHORT):
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_seen(longest, sliding_window, q.device) if windowed else None,
            is_causal=not windowed,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    else:
        seen = _seen(longest, sliding_window if windowed else None, q.device)
        out = _written_out(q, k, v, seen, scaling=scaling, softcap=softcap, dropout=dropout)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, back).unsqueeze(0), None


def _gather(states: Tensor, rows: Tensor) -> Tensor:
    """(1, heads, T, d) → (R, heads, L, d)."""
    # index_select, whose backward is several times faster on a CPU than that of indexing.
    return states[0].transpose(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length): whether a row's token sees a column's."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, *, scaling: float, softcap: float | None, dropout: float
) -> Tensor:
    """Attention by its definition: (R, heads, L, d). The heads of a group follow one another, and share keys and values."""
    shape, groups = q.shape, q.shape[1] // k.shape[1]
    q = (q * scaling).unflatten(1, (-1, groups)).flatten(2, 3)  # (R, kv heads, group · L, d)
    scores = (q @ k.transpose(-1, -2)).unflatten(2, (groups, -1)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype)
    return (functional.dropout(weights, dropout).flatten(2, 3) @ v).view(shape)


AttentionInterface.register(NAME, attention)
