"""The table of families, and what each writes. Knows llama.cpp's graphs: what they read, and what they take for granted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from llmkit.errors import DataError, UsageError
from llmkit.gguf.architectures import rotary
from llmkit.gguf.architectures.config import Metadata, ModelConfig, Value, demand, number
from llmkit.gguf.architectures.rules import Architecture, Array, Rule, Transform

# Made from config.json: a file read back has no use for them.
COMPUTED = frozenset({rotary.LLAMA3, rotary.LONG, rotary.SHORT})


def parse(raw: Mapping[str, Any], *, where: str) -> tuple[Architecture, ModelConfig]:
    """The family of a config.json and what was read of it.

    Raises:
        DataError: a key is missing or of the wrong type.
        UsageError: the architecture is not supported; names those that are.
    """
    names = raw.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise DataError(
            "config.json names no architecture",
            code="LK0604",
            where=where,
            next="`architectures` must be a list of class names",
        )
    by_class = {name: entry for entry in ARCHITECTURES for name in entry.classes}
    if names[0] not in by_class:
        raise UsageError(
            f"cannot export {names[0]} to GGUF", code="LK0603", where=where, next=f"supported: {', '.join(sorted(by_class))}"
        )
    entry = by_class[names[0]]
    try:
        return entry, ModelConfig.model_validate({**entry.defaults, **raw})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"config.json: {key}: {first['msg']}", code="LK0604", where=where) from None


def by_name(name: str, *, where: str) -> Architecture:
    """The entry that writes GGUF architecture `name`.

    Raises:
        UsageError: there is none.
    """
    for entry in ARCHITECTURES:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in ARCHITECTURES)
    raise UsageError(f"cannot read a GGUF of architecture {name!r}", code="LK0603", where=where, next=f"supported: {known}")


def _permute(heads_key: str) -> Transform:
    """HF rotates the halves of a head, llama.cpp's `llama` graph its neighbours: reorder the rows within each head."""

    def forward(weight: Array, metadata: Mapping[str, Value]) -> Array:
        heads = int(metadata[heads_key])
        return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)

    def backward(weight: Array, metadata: Mapping[str, Value]) -> Array:
        heads = int(metadata[heads_key])
        return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)

    return Transform(forward, backward, moves=True)


_PERMUTE_QUERIES = _permute("attention.head_count")
_PERMUTE_KEYS = _permute("attention.head_count_kv")
# HF's Gemma multiplies by 1 + weight, llama.cpp by the weight. In fp32: bf16 would round small weights away.
_PLUS_ONE = Transform(lambda weight, _: weight + np.float32(1), lambda weight, _: weight - np.float32(1))

_LAYER = "model.layers.{}."
_ENDS = (
    Rule("model.embed_tokens", "token_embd", ("vocabulary", "hidden")),
    Rule("lm_head", "output", ("vocabulary", "hidden")),
)
_NORMS = (
    Rule(f"{_LAYER}input_layernorm", "blk.{}.attn_norm", ("hidden",)),
    Rule(f"{_LAYER}post_attention_layernorm", "blk.{}.ffn_norm", ("hidden",)),
    Rule("model.norm", "output_norm", ("hidden",)),
)
_OUTPUT = Rule(f"{_LAYER}self_attn.o_proj", "blk.{}.attn_output", ("hidden", "query"))
_DOWN = Rule(f"{_LAYER}mlp.down_proj", "blk.{}.ffn_down", ("hidden", "feed_forward"))
_FEED_FORWARD = (
    Rule(f"{_LAYER}mlp.gate_proj", "blk.{}.ffn_gate", ("feed_forward", "hidden")),
    Rule(f"{_LAYER}mlp.up_proj", "blk.{}.ffn_up", ("feed_forward", "hidden")),
    _DOWN,
)
_QUERIES = Rule(f"{_LAYER}self_attn.q_proj", "blk.{}.attn_q", ("query", "hidden"))
_KEYS = Rule(f"{_LAYER}self_attn.k_proj", "blk.{}.attn_k", ("key", "hidden"))
_VALUES = Rule(f"{_LAYER}self_attn.v_proj", "blk.{}.attn_v", ("key", "hidden"))
_HEAD_NORMS = (
    Rule(f"{_LAYER}self_attn.q_norm", "blk.{}.attn_q_norm", ("head",)),
    Rule(f"{_LAYER}self_attn.k_norm", "blk.{}.attn_k_norm", ("head",)),
)

_LLAMA_RULES = (
    *_ENDS,
    *_NORMS,
    replace(_QUERIES, transform=_PERMUTE_QUERIES, bias="may"),
    replace(_KEYS, transform=_PERMUTE_KEYS, bias="may"),
    *(replace(rule, bias="may") for rule in (_VALUES, _OUTPUT, *_FEED_FORWARD)),
)
_QWEN2_RULES = (
    *_ENDS,
    *_NORMS,
    *(replace(rule, bias="must") for rule in (_QUERIES, _KEYS, _VALUES)),
    _OUTPUT,
    *_FEED_FORWARD,
)
_QWEN3_RULES = (*_ENDS, *_NORMS, _QUERIES, _KEYS, _VALUES, *_HEAD_NORMS, _OUTPUT, *_FEED_FORWARD)
_PHI3_RULES = (
    *_ENDS,
    *_NORMS,
    Rule(f"{_LAYER}self_attn.qkv_proj", "blk.{}.attn_qkv", ("query_key_value", "hidden")),
    _OUTPUT,
    Rule(f"{_LAYER}mlp.gate_up_proj", "blk.{}.ffn_up", ("gate_and_up", "hidden")),
    _DOWN,
)
_GEMMA2_RULES = (
    *_ENDS,
    *(_QUERIES, _KEYS, _VALUES, _OUTPUT, *_FEED_FORWARD),
    Rule(f"{_LAYER}input_layernorm", "blk.{}.attn_norm", ("hidden",), _PLUS_ONE),
    Rule(f"{_LAYER}post_attention_layernorm", "blk.{}.post_attention_norm", ("hidden",), _PLUS_ONE),
    Rule(f"{_LAYER}pre_feedforward_layernorm", "blk.{}.ffn_norm", ("hidden",), _PLUS_ONE),
    Rule(f"{_LAYER}post_feedforward_layernorm", "blk.{}.post_ffw_norm", ("hidden",), _PLUS_ONE),
    Rule("model.norm", "output_norm", ("hidden",), _PLUS_ONE),
)
_GEMMA3_RULES = (*_GEMMA2_RULES, *(replace(rule, transform=_PLUS_ONE) for rule in _HEAD_NORMS))


def _common(config: ModelConfig) -> Metadata:
    demand(config.head_dim % 2 == 0, f"head_dim {config.head_dim}", "rotary embeddings need an even one")
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
    }


def _plain(config: ModelConfig, *ropes: str) -> Metadata:
    """What Llama, Qwen 2 and Qwen 3 share: SiLU, whole heads rotated, one kind of layer."""
    demand(config.hidden_act in ("", "silu"), f"hidden_act {config.hidden_act!r}", "llama.cpp knows silu only here")
    whole = config.rope().get("partial_rotary_factor") in (None, 1.0)
    demand(whole, "partial_rotary_factor", "llama.cpp rotates whole heads here")
    return {**_common(config), **rotary.scaled(config, supported=("default", "linear", "yarn", *ropes))}


def _llama_metadata(config: ModelConfig) -> Metadata:
    return _plain(config, "llama3")


def _qwen2_metadata(config: ModelConfig) -> Metadata:
    _demand_usual_heads(config)
    return _plain(config)


def _qwen3_metadata(config: ModelConfig) -> Metadata:
    return _plain(config)


def _phi3_metadata(config: ModelConfig) -> Metadata:
    demand(config.hidden_act in ("", "silu"), f"hidden_act {config.hidden_act!r}", "llama.cpp knows silu only here")
    _demand_usual_heads(config)
    window = config.sliding_window or 0  # ignored, see `_phi3_warnings`
    return {**_common(config), **rotary.longrope(config), "attention.sliding_window": window}


def _demand_usual_heads(config: ModelConfig) -> None:
    usual = config.hidden_size == config.num_attention_heads * config.head_dim
    demand(usual, f"head_dim {config.head_dim}", "llama.cpp takes hidden_size / num_attention_heads here")


def _llama_warnings(config: ModelConfig) -> list[str]:
    return _window_warnings(config, config.sliding_window)


def _qwen_warnings(config: ModelConfig) -> list[str]:
    some = config.max_window_layers is None or config.max_window_layers < config.num_hidden_layers
    slides = "sliding_attention" in config.layer_types if config.layer_types is not None else some
    return _window_warnings(config, config.sliding_window if config.use_sliding_window and slides else None)


def _phi3_warnings(config: ModelConfig) -> list[str]:
    found = _window_warnings(config, config.sliding_window)
    if rotary.is_long(config):
        context = rotary.phi3_context(config)
        found.append(
            f"llama.cpp chooses this model's short or long rotary factors by its context size, not by the text: "
            f"for texts up to {context} tokens run it with a context of at most {context}"
        )
    return found


def _window_warnings(config: ModelConfig, window: int | None) -> list[str]:
    if not window or window >= config.max_position_embeddings:
        return []
    return [f"llama.cpp ignores this model's sliding window: its answers differ beyond {window} tokens"]


def _gemma(config: ModelConfig, *, period: int, largest: int) -> Metadata:
    """What Gemma 2 and 3 share. `period`: every so many layers one attends to everything, fixed in llama.cpp's graph;
    `largest`: the layers of the 27B, by which llama.cpp tells the one model that scales its queries differently."""
    layers = range(1, config.num_hidden_layers + 1)
    expected = tuple("sliding_attention" if layer % period else "full_attention" for layer in layers)
    right = config.layer_types == expected if config.layer_types else config.sliding_window_pattern in (None, period)
    demand(right, "layer_types", f"llama.cpp expects full attention in every layer whose number {period} divides")
    demand(bool(config.sliding_window), "sliding_window", "llama.cpp needs one here")
    scale = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == largest else config.head_dim
    demand(config.query_pre_attn_scalar in (None, scale), "query_pre_attn_scalar", f"llama.cpp takes {scale} here")
    demand(not config.use_bidirectional_attention, "bidirectional attention", "llama.cpp's graph is causal")
    activation = config.hidden_activation or "gelu_pytorch_tanh"
    demand(activation == "gelu_pytorch_tanh", f"hidden_activation {activation!r}", "llama.cpp knows tanh-GELU here")
    scaling = rotary.scaled(config, supported=("default", "linear"))
    return {**_common(config), **scaling, "attention.sliding_window": config.sliding_window or 0}


def _gemma2_metadata(config: ModelConfig) -> Metadata:
    demand(config.tie_word_embeddings is not False, "tie_word_embeddings", "llama.cpp's gemma2 graph ties them")
    attention, final = config.attn_logit_softcapping, config.final_logit_softcapping
    demand(bool(attention and final), "softcapping", "llama.cpp's gemma2 graph always caps both logits")
    return {
        **_gemma(config, period=2, largest=46),
        "attn_logit_softcapping": attention or 0.0,
        "final_logit_softcapping": final or 0.0,
    }


def _gemma3_metadata(config: ModelConfig) -> Metadata:
    demand(not config.attn_logit_softcapping, "attn_logit_softcapping", "llama.cpp's gemma3 graph has none")
    final = {"final_logit_softcapping": config.final_logit_softcapping} if config.final_logit_softcapping else {}
    nested = (config.rope_parameters or {}).get("sliding_attention")
    local = config.rope_local_base_freq or number(nested if isinstance(nested, dict) else {}, "rope_theta", 10000.0)
    return {**_gemma(config, period=6, largest=62), **final, "rope.freq_base_swa": local}


ARCHITECTURES = (
    Architecture(
        name="llama",  # Llama 2, 3 and 3.1, Mistral v0.3, SmolLM2
        classes=("LlamaForCausalLM", "MistralForCausalLM"),
        ties=False,
        rules=_LLAMA_RULES,
        metadata=_llama_metadata,
        computed=rotary.llama3_divisors,
        warnings=_llama_warnings,
    ),
    Architecture(
        name="qwen2",
        classes=("Qwen2ForCausalLM",),
        ties=False,
        rules=_QWEN2_RULES,
        metadata=_qwen2_metadata,
        warnings=_qwen_warnings,
    ),
    Architecture(
        name="qwen3",
        classes=("Qwen3ForCausalLM",),
        ties=False,
        rules=_QWEN3_RULES,
        metadata=_qwen3_metadata,
        defaults={"head_dim": 128},
        warnings=_qwen_warnings,
    ),
    Architecture(
        name="gemma2",
        classes=("Gemma2ForCausalLM",),
        ties=True,
        rules=_GEMMA2_RULES,
        metadata=_gemma2_metadata,
        defaults={
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Architecture(
        name="gemma3",
        classes=("Gemma3ForCausalLM",),
        ties=True,
        rules=_GEMMA3_RULES,
        metadata=_gemma3_metadata,
        defaults={"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0},
    ),
    Architecture(
        name="phi3",
        classes=("Phi3ForCausalLM",),
        ties=False,
        rules=_PHI3_RULES,
        metadata=_phi3_metadata,
        computed=rotary.longrope_divisors,
        warnings=_phi3_warnings,
    ),
)
