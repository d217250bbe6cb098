"""Rotary embeddings: config.json's settings as llama.cpp's keys and per-frequency divisors. Knows no tensors of a model.

Follows transformers' `modeling_rope_utils`, whose numbers the model was trained with, and ggml's `rope_yarn`.
"""

import math
from typing import Any

import numpy as np

from llmkit.errors import DataError
from llmkit.gguf.architectures.config import Metadata, ModelConfig, demand, number
from llmkit.gguf.architectures.rules import Array

LONG, SHORT, LLAMA3 = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"
_THETA = 10000.0
# ggml's own, which no key of these families changes; transformers takes them where the file has none.
_YARN_BETAS = {"beta_fast": 32, "beta_slow": 1}
_PHI3_CONTEXT = 4096  # transformers' default, by which Phi-3 chooses between short and long factors


def scaled(config: ModelConfig, *, supported: tuple[str, ...]) -> Metadata:
    """`rope.freq_base`, and `rope.scaling.*` where the model stretches its context.

    Raises:
        UsageError: another kind than the `supported`, or settings that llama.cpp cannot be told.
        DataError: a setting is missing or no number.
    """
    rope = config.rope()
    kind = rope["rope_type"]
    demand(kind in supported, f"rope type {kind!r}", f"supported: {', '.join(supported)}")
    found: Metadata = {"rope.freq_base": number(rope, "rope_theta", _THETA)}
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": number(rope, "factor")}
    if kind == "yarn":
        found |= _yarn(config, rope)
    return found


def _yarn(config: ModelConfig, rope: dict[str, Any]) -> Metadata:
    for key, value in _YARN_BETAS.items():
        demand(rope.get(key) in (None, 0, value), f"yarn's {key}", f"llama.cpp takes {value} here")
    demand(rope.get("truncate") in (None, True), "yarn's truncate", "llama.cpp truncates")
    factor = number(rope, "factor")
    found: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(
            number(rope, "original_max_position_embeddings", config.max_position_embeddings)
        ),
    }
    own, usual = _yarn_attention(rope, factor), _magnitude(factor)
    if own != usual:
        found["rope.scaling.attn_factor"] = own / usual  # llama.cpp multiplies it to the usual one
    return found


def _yarn_attention(rope: dict[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _magnitude(factor, number(rope, "mscale")) / _magnitude(factor, number(rope, "mscale_all_dim"))
    return _magnitude(factor)


def _magnitude(factor: float, share: float = 1.0) -> float:
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_divisors(config: ModelConfig) -> dict[str, Array]:
    """Llama 3.1's scaling as the per-frequency divisors llama.cpp reads; float32, shape (head_dim / 2,); else nothing.

    In float32 as both transformers and llama.cpp's converter compute it.
    """
    rope = config.rope()
    if rope["rope_type"] != "llama3":
        return {}
    factor, low, high = (np.float32(number(rope, f"{key}factor", value)) for key, value in _LLAMA3)
    context = np.float32(number(rope, "original_max_position_embeddings", 8192.0))
    demand(bool(high > low), "rope settings", "high_freq_factor must be above low_freq_factor")
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    waves = np.float32(2 * math.pi) / (np.float32(1) / np.power(np.float32(number(rope, "rope_theta", _THETA)), exponents))
    smooth = (context / waves - low) / (high - low)
    between = np.float32(1) / ((np.float32(1) - smooth) / factor + smooth)
    divisors = np.where(waves < context / high, np.float32(1), np.where(waves > context / low, factor, between))
    return {LLAMA3: divisors.astype(np.float32)}


_LLAMA3 = (("", None), ("low_freq_", 1.0), ("high_freq_", 4.0))


def phi3_context(config: ModelConfig) -> int:
    """The length of text up to which the short factors hold."""
    return config.original_max_position_embeddings or _PHI3_CONTEXT


def phi3_dimensions(config: ModelConfig) -> int:
    """How many numbers of a head are rotated."""
    share = number(config.rope(), "partial_rotary_factor", 1.0)
    return int(share * config.hidden_size) // config.num_attention_heads


def is_long(config: ModelConfig) -> bool:
    """Whether Phi-3 scales by LongRoPE, in any of the names transformers takes for it."""
    return config.rope()["rope_type"] in ("longrope", "su", "yarn")


def longrope(config: ModelConfig) -> Metadata:
    """Phi-3's `rope.*` keys; the factors themselves are tensors, see `longrope_divisors`."""
    rope = config.rope()
    known = is_long(config) or rope["rope_type"] == "default"
    demand(known, f"rope type {rope['rope_type']!r}", "supported: default, longrope")
    found: Metadata = {
        "rope.freq_base": number(rope, "rope_theta", _THETA),
        "rope.scaling.original_context_length": phi3_context(config),
        "rope.dimension_count": phi3_dimensions(config),
    }
    if is_long(config):
        found["rope.scaling.attn_factor"] = _longrope_attention(config, rope)
    return found


def _longrope_attention(config: ModelConfig, rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    context = phi3_context(config)
    factor = number(rope, "factor") if rope.get("factor") is not None else config.max_position_embeddings / context
    demand(context > 1, "original_max_position_embeddings", "it must be above 1")
    return math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0


def longrope_divisors(config: ModelConfig) -> dict[str, Array]:
    """LongRoPE's divisors, one tensor for texts up to `phi3_context` and one beyond; float32, shape (rotated / 2,).

    Raises:
        DataError: they are missing, of another length or not positive numbers.
    """
    if not is_long(config):
        return {}
    return {LONG: _divisors(config, "long_factor"), SHORT: _divisors(config, "short_factor")}


def _divisors(config: ModelConfig, key: str) -> Array:
    listed, wanted = config.rope().get(key), phi3_dimensions(config) // 2
    if not isinstance(listed, list) or len(listed) != wanted:
        raise DataError(f"config.json: rope settings: {key} must be a list of {wanted} numbers", code="LK0604")
    return np.array([number({key: value}, key) for value in listed], np.float32)
