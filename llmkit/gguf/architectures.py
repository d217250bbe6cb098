"""Which models become GGUF, and how: names, shapes, transforms and metadata, a table with one entry a family.

Knows config.json and tensor names; nothing of tokenizers, files or quantization. A new family is one `Architecture`.
Names and keys follow the GGUF specification and llama.cpp's graphs, which fix what a file can say.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from llmkit.errors import DataError, UsageError

Value = int | float | str | bool
Array = np.ndarray[Any, Any]
Metadata = dict[str, Value]
_LARGEST = 2**31 - 1


class ModelConfig(BaseModel, frozen=True, extra="ignore"):
    """What is read of config.json, as transformers 4 or 5 writes it."""

    architectures: tuple[str, ...] = Field(min_length=1)
    hidden_size: int = Field(gt=0, le=_LARGEST)
    intermediate_size: int = Field(gt=0, le=_LARGEST)
    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_attention_heads: int = Field(gt=0, le=_LARGEST)
    num_key_value_heads: int = Field(gt=0, le=_LARGEST)
    head_dim: int = Field(gt=0, le=_LARGEST)
    vocab_size: int = Field(gt=0, le=_LARGEST)
    max_position_embeddings: int = Field(gt=0, le=_LARGEST)
    rms_norm_eps: float = Field(gt=0, lt=1)
    hidden_act: str = ""
    hidden_activation: str | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = Field(None, gt=0, lt=1e30)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    sliding_window: int | None = Field(None, ge=0, le=_LARGEST)
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        """Old files leave out what follows from the head count."""
        if not isinstance(raw, dict):
            return raw
        heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
        filled = {key: value for key, value in raw.items() if value is not None}
        filled.setdefault("num_key_value_heads", heads)
        if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
            filled.setdefault("head_dim", hidden // heads)
        return filled

    def rope(self, layers: str = "full_attention") -> dict[str, Any]:
        """The rotary settings of one kind of layer: {"rope_type", "rope_theta", …}, wherever this file keeps them."""
        settings = self.rope_parameters or self.rope_scaling or {}
        nested = settings.get(layers)
        chosen: dict[str, Any] = dict(nested) if isinstance(nested, dict) else dict(settings)
        chosen.setdefault("rope_type", chosen.get("type", "default"))
        if self.rope_theta is not None:
            chosen.setdefault("rope_theta", self.rope_theta)
        return chosen


@dataclass(frozen=True)
class Transform:
    """How a tensor changes on its way into GGUF, and back. Both take the whole tensor and the GGUF metadata without prefix.

    `moves`: it only reorders rows, so it works on stored values of any type; otherwise it takes and gives float32.
    """

    forward: Callable[[Array, Mapping[str, Value]], Array]
    backward: Callable[[Array, Mapping[str, Value]], Array]
    moves: bool = False


@dataclass(frozen=True)
class Rule:
    """One tensor: HF stem, GGUF stem, shape in the terms of `dimensions`. `{}` stands for the layer."""

    hf: str
    gguf: str
    shape: tuple[str, ...]
    transform: Transform | None = None
    bias: bool = False  # a bias of this shape's first dimension may stand beside the weight


@dataclass(frozen=True)
class Tensor:
    """One tensor of one model. `shape` is HF's; `required` is False for a bias the model may lack."""

    hf: str
    gguf: str
    shape: tuple[int, ...]
    transform: Transform | None
    required: bool = True


@dataclass(frozen=True)
class Architecture:
    """One family. `ties`: what an absent `tie_word_embeddings` means; `metadata` may raise UsageError;
    `computed`: tensors that stand in no weight file, by GGUF name."""

    name: str
    classes: tuple[str, ...]
    ties: bool
    rules: tuple[Rule, ...]
    metadata: Callable[[ModelConfig], Metadata]
    computed: Callable[[ModelConfig], dict[str, Array]] = field(default=lambda config: {})
    warnings: Callable[[ModelConfig], list[str]] = field(default=lambda config: [])

    def tied(self, config: ModelConfig) -> bool:
        return self.ties if config.tie_word_embeddings is None else config.tie_word_embeddings

    def tensors(self, config: ModelConfig) -> list[Tensor]:
        """Every tensor of the model, biases included, `lm_head` left out where it is tied."""
        sizes = dimensions(config)
        found: list[Tensor] = []
        for rule in self.rules:
            if rule.hf == "lm_head" and self.tied(config):
                continue
            shape = tuple(sizes[name] for name in rule.shape)
            for layer in range(config.num_hidden_layers) if "{}" in rule.hf else (0,):
                hf, gguf = rule.hf.format(layer), rule.gguf.format(layer)
                found.append(Tensor(f"{hf}.weight", f"{gguf}.weight", shape, rule.transform))
                if rule.bias:
                    found.append(Tensor(f"{hf}.bias", f"{gguf}.bias", shape[:1], rule.transform, required=False))
        return found

    def hf_name(self, gguf_name: str) -> tuple[str, Transform | None] | None:
        """The HF name and the transform of a GGUF tensor; None for one that no HF tensor stands behind."""
        stem, _, kind = gguf_name.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", stem)
        wanted = re.sub(r"^blk\.\d+\.", "blk.{}.", stem)
        for rule in self.rules:
            if rule.gguf == wanted:
                return f"{rule.hf.format(layer[1] if layer else '')}.{kind}", rule.transform
        return None


def parse(raw: Mapping[str, Any], *, where: str) -> tuple[Architecture, ModelConfig]:
    """The family of a config.json and what was read of it.

    Raises:
        DataError: a key is missing or of the wrong type.
        UsageError: the architecture is not supported; names those that are.
    """
    names = raw.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise DataError("config.json names no architecture", where=where, next="`architectures` must be a list of class names")
    by_class = {name: entry for entry in ARCHITECTURES for name in entry.classes}
    if names[0] not in by_class:
        raise UsageError(f"cannot export {names[0]} to GGUF", where=where, next=f"supported: {', '.join(sorted(by_class))}")
    try:
        return by_class[names[0]], ModelConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"config.json: {key}: {first['msg']}", where=where) from None


def by_name(name: str, *, where: str) -> Architecture:
    """The entry that writes GGUF architecture `name`.

    Raises:
        UsageError: there is none.
    """
    for entry in ARCHITECTURES:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in ARCHITECTURES)
    raise UsageError(f"cannot read a GGUF of architecture {name!r}", where=where, next=f"supported: {known}")


def dimensions(config: ModelConfig) -> dict[str, int]:
    """Sizes by the names that `Rule.shape` uses."""
    return {
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "query": config.num_attention_heads * config.head_dim,
        "key": config.num_key_value_heads * config.head_dim,
        "head": config.head_dim,
        "vocabulary": config.vocab_size,
    }


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

_SHARED = (
    Rule("model.embed_tokens", "token_embd", ("vocabulary", "hidden")),
    Rule("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", ("key", "hidden"), bias=True),
    Rule("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", ("hidden", "query"), bias=True),
    Rule("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate", ("feed_forward", "hidden"), bias=True),
    Rule("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up", ("feed_forward", "hidden"), bias=True),
    Rule("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", ("hidden", "feed_forward"), bias=True),
    Rule("lm_head", "output", ("vocabulary", "hidden")),
)

_LLAMA_RULES = (
    *_SHARED,
    Rule("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", ("query", "hidden"), _PERMUTE_QUERIES, bias=True),
    Rule("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", ("key", "hidden"), _PERMUTE_KEYS, bias=True),
    Rule("model.layers.{}.input_layernorm", "blk.{}.attn_norm", ("hidden",)),
    Rule("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", ("hidden",)),
    Rule("model.norm", "output_norm", ("hidden",)),
)

_GEMMA3_RULES = (
    *(Rule(rule.hf, rule.gguf, rule.shape) for rule in _SHARED),
    Rule("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", ("query", "hidden")),
    Rule("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", ("key", "hidden")),
    Rule("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", ("head",), _PLUS_ONE),
    Rule("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", ("head",), _PLUS_ONE),
    Rule("model.layers.{}.input_layernorm", "blk.{}.attn_norm", ("hidden",), _PLUS_ONE),
    Rule("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", ("hidden",), _PLUS_ONE),
    Rule("model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm", ("hidden",), _PLUS_ONE),
    Rule("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", ("hidden",), _PLUS_ONE),
    Rule("model.norm", "output_norm", ("hidden",), _PLUS_ONE),
)


def _common(config: ModelConfig) -> Metadata:
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


def _llama_metadata(config: ModelConfig) -> Metadata:
    rope = config.rope()
    _demand(config.hidden_act in ("", "silu"), f"hidden_act {config.hidden_act!r}", "llama.cpp's llama graph knows silu only")
    _demand(config.partial_rotary_factor in (None, 1.0), "partial_rotary_factor", "llama.cpp rotates whole heads here")
    _demand(config.head_dim % 2 == 0, f"head_dim {config.head_dim}", "rotary embeddings need an even one")
    kind = rope["rope_type"]
    _demand(kind in ("default", "linear", "llama3"), f"rope type {kind!r}", "supported: default, linear, llama3")
    return {**_common(config), "rope.freq_base": _number(rope, "rope_theta", 10000.0), **_linear_scaling(rope)}


def _llama3_frequencies(config: ModelConfig) -> dict[str, Array]:
    """Llama 3.1's rotary scaling as the per-frequency divisors llama.cpp reads; shape (head_dim / 2,).

    Follows transformers' `_compute_llama3_parameters`.
    """
    rope = config.rope()
    if rope["rope_type"] != "llama3":
        return {}
    base, factor = _number(rope, "rope_theta", 10000.0), _number(rope, "factor")
    low, high = _number(rope, "low_freq_factor", 1.0), _number(rope, "high_freq_factor", 4.0)
    context = _number(rope, "original_max_position_embeddings", 8192.0)
    _demand(high != low, "rope settings", "high_freq_factor equals low_freq_factor")
    divisors = []
    for index in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * base ** (index / config.head_dim)
        smooth = min(max((context / wavelength - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(divisors, np.float32)}


def _llama_warnings(config: ModelConfig) -> list[str]:
    window = config.sliding_window
    if window is None or window >= config.max_position_embeddings:
        return []
    return [f"llama.cpp ignores this model's sliding window: its answers differ beyond {window} tokens"]


_GEMMA3_PERIOD = 6  # every sixth layer attends to everything; fixed in llama.cpp's graph
_GEMMA3_27B_LAYERS = 62  # by this count llama.cpp tells the one model that scales its queries differently


def _gemma3_metadata(config: ModelConfig) -> Metadata:
    layers = range(1, config.num_hidden_layers + 1)
    expected = tuple("sliding_attention" if layer % _GEMMA3_PERIOD else "full_attention" for layer in layers)
    _demand(config.layer_types in (None, expected), "layer_types", "llama.cpp expects full attention in every sixth layer")
    heads_share = config.hidden_size / config.num_attention_heads
    scale = heads_share if config.num_hidden_layers == _GEMMA3_27B_LAYERS else config.head_dim
    _demand(config.query_pre_attn_scalar in (None, scale), "query_pre_attn_scalar", f"llama.cpp takes {scale:g} here")
    _demand(not config.use_bidirectional_attention, "bidirectional attention", "llama.cpp's gemma3 graph is causal")
    _demand(not config.attn_logit_softcapping, "attn_logit_softcapping", "llama.cpp's gemma3 graph has none")
    _demand(not config.final_logit_softcapping, "final_logit_softcapping", "llama.cpp's gemma3 graph has none")
    activation = config.hidden_activation or "gelu_pytorch_tanh"
    _demand(activation == "gelu_pytorch_tanh", f"hidden_activation {activation!r}", "llama.cpp knows tanh-GELU here")
    full = config.rope("full_attention")
    kind = full["rope_type"]
    _demand(kind in ("default", "linear"), f"rope type {kind!r}", "supported: default, linear")
    nested = (config.rope_parameters or {}).get("sliding_attention")
    local = config.rope_local_base_freq or _number(nested if isinstance(nested, dict) else {}, "rope_theta", 10000.0)
    return {
        **_common(config),
        "attention.sliding_window": config.sliding_window or 4096,
        "rope.freq_base": _number(full, "rope_theta", 1_000_000.0),
        "rope.freq_base_swa": local,
        **_linear_scaling(full),
    }


def _linear_scaling(rope: Mapping[str, Any]) -> Metadata:
    if rope["rope_type"] != "linear":
        return {}
    return {"rope.scaling.type": "linear", "rope.scaling.factor": _number(rope, "factor")}


def _demand(holds: bool, what: str, why: str) -> None:
    if not holds:
        raise UsageError(f"cannot export this model to GGUF: {what} of its config.json", next=why)


def _number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise DataError(f"config.json: rope settings: {key} must be a positive number, not {value!r}")
    return float(value)


ARCHITECTURES = (
    Architecture(
        name="llama",
        classes=("LlamaForCausalLM", "MistralForCausalLM"),
        ties=False,
        rules=_LLAMA_RULES,
        metadata=_llama_metadata,
        computed=_llama3_frequencies,
        warnings=_llama_warnings,
    ),
    Architecture(
        name="gemma3",
        classes=("Gemma3ForCausalLM",),
        ties=True,
        rules=_GEMMA3_RULES,
        metadata=_gemma3_metadata,
    ),
)
