"""Log-probabilities of the tokens to learn, and of no others. Knows models and packed batches; nothing of trainers.

The output head is applied at scored positions only, a chunk of them at a time: with Gemma's vocabulary of 262,144 it
costs more than the rest of a small model, and its logits more memory. A frozen head's gradient is taken in the forward
pass, while a chunk's logits are at hand, so that no chunk's are ever made twice or kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmkit.engine import packing
from llmkit.errors import FidelityError

CHUNK_ELEMENTS = 2**25  # logits alive at once: 64 MiB in bf16, 128 MiB in fp32
ROWS = 4  # positions whose logits are worked on in fp32 at once: what a processor's cache holds
TILE = 64  # tokens to whose multiple a packed row is filled up: a CPU makes a kernel, and keeps it, for each new length


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: weight (vocabulary, hidden), bias, a factor, and Gemma 2's cap."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None


def score(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probability (nats, fp32) of each scored token of a packed batch: (scores,), in the order of its `targets`.

    `model` is a causal language model of transformers, bare or wrapped (by peft, by accelerate), inside `scoring`.
    """
    return model(**{name: batch[name] for name in _INPUTS})["log_probs"]


@contextmanager
def scoring(model: Any, *, packed: bool | None = None) -> Iterator[None]:
    """Let `model` answer `score`; its own forward is untouched for every other call, and restored at the end.

    The scores are computed inside the model's own forward, and its head's, so that wrappers (DDP, FSDP) see ordinary ones.
    `packed`: whether attention too works on the packed row; by default where the architecture lets it.
    """
    causal = _causal(model)
    head, own_attention = causal.get_output_embeddings(), causal.config._attn_implementation
    packed = packing.can_pack(causal) if packed is None else packed
    if packed:
        causal.set_attn_implementation(packing.NAME)

    def forward(original: Any, *args: Any, targets: Tensor | None = None, **inputs: Any) -> Any:
        if targets is None:
            return original(*args, **inputs)
        states = _states(causal, inputs, packed=packed)[inputs["sources"]]
        return {"log_probs": head(states, targets)}

    def head_forward(original: Any, states: Tensor, targets: Tensor | None = None) -> Tensor:
        return original(states) if targets is None else log_probs(_head(causal, head), states, targets)

    try:
        with _instead(causal, forward), _instead(head, head_forward):
            yield
    finally:
        if packed:
            causal.set_attn_implementation(own_attention)


@contextmanager
def _instead(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward(the module's own forward, …)` in its place."""
    original, patched = module.forward, "forward" in vars(module)  # TRL patches a model too
    module.forward = partial(forward, original)
    try:
        yield
    finally:
        if patched:
            module.forward = original
        else:
            del module.forward


@contextmanager
def speaking(model: Any) -> Iterator[None]:
    """Within `scoring`: attention over padded rows again, for generation."""
    causal = _causal(model)
    if causal.config._attn_implementation != packing.NAME:
        yield
        return
    causal.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        causal.set_attn_implementation(packing.NAME)


_INPUTS = ("input_ids", "position_ids", "rows", "lengths", "back", "sources", "targets")


def _causal(model: Any) -> Any:
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _states(causal: Any, batch: Mapping[str, Tensor], *, packed: bool) -> Tensor:
    """The last hidden state of each of the batch's tokens: (T, hidden)."""
    ids, rows, back = batch["input_ids"], batch["rows"], batch["back"]
    if packed:
        fill = (0, -ids.shape[1] % TILE)
        found = causal.base_model(
            input_ids=functional.pad(ids, fill),
            position_ids=functional.pad(batch["position_ids"], fill),
            rows=rows,
            back=functional.pad(back, fill),
            use_cache=False,
        )
        return found.last_hidden_state[0, : len(back)]
    return causal.base_model(**_unpacked(batch)).last_hidden_state.flatten(0, 1)[back]


def _unpacked(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch as a model's own forward takes it: one row for each sequence, filled on the right."""
    rows = batch["rows"]
    seen = torch.arange(rows.shape[1], device=rows.device) < batch["lengths"][:, None]
    return {"input_ids": batch["input_ids"][0][rows], "attention_mask": seen.long(), "use_cache": False}


def _head(causal: Any, head: Any) -> Head:
    config = causal.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)  # Cohere; Granite
    return Head(head.weight, getattr(head, "bias", None), scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2


def log_probs(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability (nats, fp32) of `targets` (positions,) after hidden states (positions, hidden)."""
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    if hidden.requires_grad and not head.weight.requires_grad:
        if torch.is_autocast_enabled(hidden.device.type):  # a function of our own is not cast by itself
            dtype = torch.get_autocast_dtype(hidden.device.type)
            bias = None if head.bias is None else head.bias.to(dtype)
            head, hidden = Head(head.weight.to(dtype), bias, head.scale, head.cap), hidden.to(dtype)
        return _FrozenHead.apply(hidden, targets, head, size)
    pieces = [(hidden[part], targets[part]) for part in _evenly(len(hidden), size)]
    if not torch.is_grad_enabled() or len(hidden) <= size:
        return torch.cat([_plain(head, states, wanted) for states, wanted in pieces] or [hidden.new_zeros(0).float()])
    # The head learns too, and its gradient needs what comes from above: make each chunk's logits again then.
    return torch.cat([checkpoint(_plain, head, states, wanted, use_reentrant=False) for states, wanted in pieces])


def _plain(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = _finished(functional.linear(hidden, head.weight, head.bias), head)
    return -functional.cross_entropy(logits, targets, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """Keeps log p's gradient by the hidden state, scale · (weight[target] − Σ p · weight): (positions, hidden)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, size: int) -> Tensor:
        found = hidden.new_empty(len(hidden), dtype=torch.float32)
        slopes = torch.empty_like(hidden)
        for part in _evenly(len(hidden), size):
            logits = functional.linear(hidden[part], head.weight, head.bias)
            for rows in _evenly(len(logits), ROWS):
                found[part][rows], logits[rows] = _with_slope(logits[rows], targets[part][rows], head)
            torch.mm(logits, head.weight, out=slopes[part])
        ctx.save_for_backward(slopes.mul_(-head.scale))
        return found

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * above[0][:, None]).to(slopes.dtype), None, None, None


def _with_slope(raw: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """From the head's product: log-probabilities (positions,), −d log p / d logit before the cap (positions, vocabulary)."""
    logits = _finished(raw, head)
    highest = logits.amax(1, keepdim=True)
    bend = None if head.cap is None else 1 - (logits / head.cap).square()
    wanted = targets[:, None]
    chosen = logits.gather(1, wanted)
    weights = torch.sub(logits, highest, out=logits).exp_()
    total = weights.sum(1, keepdim=True)
    weights.div_(total).scatter_add_(1, wanted, torch.full_like(chosen, -1.0))  # p - 1 at the target
    return (chosen - highest - total.log()).squeeze(1), weights if bend is None else weights.mul_(bend)


def _finished(raw: Tensor, head: Head) -> Tensor:
    """fp32 logits: scaled, capped; a copy."""
    logits = raw.float() if head.scale == 1 and raw.dtype != torch.float32 else raw.float() * head.scale
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def _evenly(count: int, most: int) -> list[slice]:
    """`count` things in the fewest parts of at most `most`, alike in size: a part of one costs nearly as much as a whole."""
    parts = -(-count // most)
    size = -(-count // parts) if parts else most
    size = min(most, -(-size // 16) * 16) if size > 16 else size  # whole tiles of a matrix unit
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def prove(model: Any, batch: Mapping[str, Tensor], *, tolerance: float = 1e-3) -> None:
    """Fail where the model's own padded forward gives other log-probabilities: it does more than this module knows of.

    `tolerance` (nats, the largest over the batch's tokens' mean) is for fp32: bf16 logits differ by tenths with the
    shape of the product that makes them. Run it on a bare model.

    Raises:
        FidelityError: with both means.
    """
    with torch.no_grad():
        with scoring(model):
            ours = score(model, batch).mean().item()
        logits = model(**_unpacked(batch)).logits
        scored = logits.flatten(0, 1)[batch["back"]][batch["sources"]].float()
        theirs = -functional.cross_entropy(scored, batch["targets"]).item()
    if not abs(ours - theirs) <= tolerance:
        raise FidelityError(f"the mean log-probability is {ours:.4f}, by the model's own logits {theirs:.4f}", code="LK0413")
