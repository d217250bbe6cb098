"""GGUF metadata back as config.json. Knows the keys of each family; nothing of weights' values or tokenizers.

Whatever is made here goes the other way again before it is used: the architecture's own table must make the file's keys of it.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmkit.errors import DataError, UsageError
from llmkit.gguf import architectures
from llmkit.gguf.architectures import Array, ModelConfig
from llmkit.gguf.read import GgufModel

Config = dict[str, Any]
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
# What llama.cpp takes where a file does not say (src/llama-hparams.h, src/llama-model.cpp, src/models).
_ROPE_BASE = 10000.0
_GEMMA2_ATTENTION_CAP, _GEMMA2_FINAL_CAP, _GEMMA2_WINDOW = 50.0, 30.0, 4096
# The one model of each family whose queries are scaled by the hidden size, told by its layers.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
_GEMMA3_PERIOD = 6
# They change what llama.cpp computes, and no family here has them: a file with one of these is another model.
_FOREIGN_KEYS = (
    "expert_count",
    "expert_used_count",
    "attention.scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as every published model has them


def config(model: GgufModel) -> Config:
    """The config.json of `model` as transformers 5 writes it, without its `dtype` and the tokenizer's ids.

    Raises:
        DataError: a key is missing or contradicts the tensors.
        UsageError: the file asks for something this family does not have in transformers, or cannot be read back.
    """
    where = str(model.path)
    if model.architecture.name not in _MODEL_TYPES:
        raise UsageError(f"cannot make a model folder of architecture {model.architecture.name}", code="LK0623", where=where)
    strange = [key for key in _FOREIGN_KEYS if model.own.get(key)]
    if strange:
        raise UsageError(f"cannot make a model folder of this file: {strange[0]} is set", code="LK0623", where=where)
    try:
        made = {**_common(model), **_FAMILIES[model.architecture.name](model)}
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, KeyError) as error:
        raise DataError(f"the file's metadata cannot be used: {error!r}", code="LK0623", where=where) from None
    _check(made, model)
    return made


def _common(model: GgufModel) -> Config:
    own = model.own
    heads, hidden = _whole(own, "attention.head_count"), _whole(own, "embedding_length")
    names = {weight.name for weight in model.weights}
    rows = next(weight.shape[0] for weight in model.weights if weight.name == "model.embed_tokens.weight")
    return {
        "architectures": [model.architecture.classes[0]],
        "model_type": _MODEL_TYPES[model.architecture.name],
        "hidden_size": hidden,
        "intermediate_size": _whole(own, "feed_forward_length"),
        "num_hidden_layers": _layers(model),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(own, "attention.head_count_kv", heads),
        "head_dim": _whole(own, "attention.key_length", hidden // heads),
        "vocab_size": rows,
        "max_position_embeddings": _whole(own, "context_length"),
        "rms_norm_eps": _decimal(_real(own, "attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "lm_head.weight" not in names,
    }


def _layers(model: GgufModel) -> int:
    count = _whole(model.own, "block_count")
    if count > len(model.weights):
        raise ValueError(f"block_count is {count}, and the file has {len(model.weights)} tensors")
    return count


def _llama(model: GgufModel) -> Config:
    names = {weight.name for weight in model.weights}
    rope = _rope(model)
    if "rope_freqs.weight" in model.rotary:
        dimensions = _whole(model.own, "attention.key_length", _common(model)["head_dim"])
        rope = _llama3_rope(model.rotary["rope_freqs.weight"], rope["rope_theta"], dimensions)
    return {
        "hidden_act": "silu",
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in names,
        "rope_parameters": rope,
    }


def _qwen(model: GgufModel) -> Config:
    return {"hidden_act": "silu", "use_sliding_window": False, "rope_parameters": _rope(model)}


def _gemma2(model: GgufModel) -> Config:
    layers = range(_layers(model))
    return {
        **_gemma(model),
        "attn_logit_softcapping": _decimal(_real(model.own, "attn_logit_softcapping", _GEMMA2_ATTENTION_CAP)),
        "final_logit_softcapping": _decimal(_real(model.own, "final_logit_softcapping", _GEMMA2_FINAL_CAP)),
        "sliding_window": _whole(model.own, "attention.sliding_window", _GEMMA2_WINDOW),
        "layer_types": ["full_attention" if layer % 2 else "sliding_attention" for layer in layers],
        "rope_parameters": _rope(model),
    }


def _gemma3(model: GgufModel) -> Config:
    layers = range(1, _layers(model) + 1)
    local = _real(model.own, "rope.freq_base_swa", _ROPE_BASE)
    return {
        **_gemma(model),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": model.own.get("final_logit_softcapping"),
        "sliding_window": _whole(model.own, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if layer % _GEMMA3_PERIOD else "full_attention" for layer in layers],
        "rope_parameters": {
            "full_attention": _rope(model),
            "sliding_attention": {"rope_type": "default", "rope_theta": _decimal(local)},
        },
    }


def _gemma(model: GgufModel) -> Config:
    sizes = _common(model)
    is_largest = sizes["num_hidden_layers"] == _GEMMA_27B_LAYERS[model.architecture.name]
    scale = sizes["hidden_size"] // sizes["num_attention_heads"] if is_largest else sizes["head_dim"]
    return {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": scale}


def _phi3(model: GgufModel) -> Config:
    sizes = _common(model)
    trained = _whole(model.own, "rope.scaling.original_context_length", sizes["max_position_embeddings"])
    share = _whole(model.own, "rope.dimension_count", sizes["head_dim"]) / sizes["head_dim"]
    rope: Config = {"rope_type": "default", "rope_theta": _decimal(_real(model.own, "rope.freq_base", _ROPE_BASE))}
    factors = {kind: model.rotary.get(f"rope_factors_{kind}.weight") for kind in ("long", "short")}
    if factors["long"] is not None and factors["short"] is not None:
        lists = {f"{kind}_factor": [_decimal(value) for value in found] for kind, found in factors.items() if found is not None}
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": trained, **lists}
        attention = _real(model.own, "rope.scaling.attn_factor", 1.0)
        scale = sizes["max_position_embeddings"] / trained
        expected = math.sqrt(1 + math.log(scale) / math.log(trained)) if scale > 1 else 1.0
        if not math.isclose(attention, expected, rel_tol=1e-6):
            rope["attention_factor"] = _decimal(attention)
    return {
        "hidden_act": "silu",
        "sliding_window": _whole(model.own, "attention.sliding_window", 0) or None,
        "original_max_position_embeddings": trained,
        "partial_rotary_factor": share,
        "rope_parameters": {**rope, "partial_rotary_factor": share},
    }


_FAMILIES: dict[str, Callable[[GgufModel], Config]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": lambda model: {**_qwen(model), "attention_bias": False},
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}


def _rope(model: GgufModel) -> Config:
    own = model.own
    base = _decimal(_real(own, "rope.freq_base", _ROPE_BASE))
    factor = _real(own, "rope.scaling.factor", _real(own, "rope.scale_linear", 1.0))
    kind = own.get("rope.scaling.type", "linear")
    if kind == "yarn":
        trained = _whole(own, "rope.scaling.original_context_length")
        scaling: Config = {"factor": _decimal(factor), "original_max_position_embeddings": trained}
        if "rope.scaling.attn_factor" in own:  # which llama.cpp multiplies to the usual one
            usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
            scaling["attention_factor"] = _decimal(_real(own, "rope.scaling.attn_factor") * usual)
        return {"rope_type": "yarn", "rope_theta": base, **scaling}
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default", "rope_theta": base}
    if kind != "linear":
        raise UsageError(
            f"cannot make a model folder of this file: rotary scaling {reprlib.repr(kind)}",
            code="LK0623",
            where=str(model.path),
        )
    return {"rope_type": "linear", "rope_theta": base, "factor": _decimal(factor)}


def _llama3_rope(divisors: Array, base: float, dimensions: int) -> Config:
    """The settings whose divisors these are; a file keeps no more. Models that differ in none of them compute the same.

    See `architectures` for the formula: 1 where the wave is shorter than context / high, `factor` where it is longer than
    context / low, and between them the smooth share (context / wave - low) / (high - low).
    """
    found: list[float] = [float(value) for value in divisors]
    if not all(1.0 <= value < 1e6 for value in found) or len(found) != dimensions // 2:
        raise ValueError("rope_freqs.weight holds no frequency divisors")
    factor = max(found)
    if factor == 1.0:
        return {"rope_type": "default", "rope_theta": base}
    waves = [2 * math.pi * base ** (2 * index / dimensions) for index in range(len(found))]
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    between = [
        ((1 / value - 1 / factor) / (1 - 1 / factor), wave)
        for value, wave in zip(found, waves, strict=True)
        if 1.0 < value < factor
    ]
    if between:
        contexts = sorted(wave * (share * (high - low) + low) for share, wave in between)
        context = contexts[len(contexts) // 2]
    else:  # no wave lies between: any context that parts them will do
        longest = max((wave for value, wave in zip(found, waves, strict=True) if value == 1.0), default=waves[0] / high)
        context = longest * high
    scaling = {"factor": _decimal(factor), **_LLAMA3, "original_max_position_embeddings": max(1, round(context))}
    return {"rope_type": "llama3", "rope_theta": base, **scaling}


def _check(made: Config, model: GgufModel) -> None:
    """That the architecture's table makes the file's metadata and rotary tensors of `made`."""
    where = str(model.path)
    try:
        parsed = ModelConfig.model_validate(made)
        again, computed = model.architecture.metadata(parsed), model.architecture.computed(parsed)
    except UsageError as error:
        raise UsageError(
            f"cannot make a model folder of this file: {error.what}", code="LK0623", where=where, next=error.next
        ) from None
    except ValueError as error:
        raise DataError(
            f"the file's metadata cannot be used: {str(error).splitlines()[0]}", code="LK0623", where=where
        ) from None
    for key, value in again.items():
        if key in model.own and not _alike(model.own[key], value):
            raise DataError(
                f"the file says {key} = {reprlib.repr(model.own[key])}, its tensors and other keys {value!r}",
                code="LK0623",
                where=where,
            )
    if computed.keys() != model.rotary.keys():
        raise DataError(
            f"the file's rotary tensors are {sorted(model.rotary)}, not {sorted(computed)}", code="LK0623", where=where
        )
    for name, values in computed.items():
        if values.shape != model.rotary[name].shape or not np.allclose(values, model.rotary[name], rtol=1e-4, atol=0):
            raise UsageError(f"{name} follows no scaling that transformers has", code="LK0623", where=where)


def _alike(found: architectures.Value, made: architectures.Value) -> bool:
    if isinstance(found, float) and isinstance(made, int | float):
        return math.isclose(found, made, rel_tol=1e-5)
    return found == made


def _whole(own: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = own.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} is {reprlib.repr(value)}")
    return value


def _real(own: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = own.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{key} is {reprlib.repr(value)}")
    return float(value)


def _decimal(value: float) -> float:
    """The shortest decimal that is this value in float32, in which GGUF keeps it: 1e-06 and not 9.999999974752427e-07."""
    return float(str(np.float32(value)))
