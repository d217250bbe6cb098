"""The terms in which a family is described: tensors by rule, and how one changes on its way. Knows no family."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from llmkit.gguf.architectures.config import Metadata, ModelConfig, Value

Array = np.ndarray[Any, Any]
Bias = Literal["never", "may", "must"]


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
    """One tensor: HF stem, GGUF stem, shape in the terms of `dimensions`. `{}` stands for the layer.

    `bias`: whether a bias of this shape's first dimension stands beside the weight.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    transform: Transform | None = None
    bias: Bias = "never"


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
    """One family. `ties`: what an absent `tie_word_embeddings` means; `defaults`: what other absent keys mean;
    `metadata` may raise UsageError; `computed`: tensors that stand in no weight file, by GGUF name."""

    name: str
    classes: tuple[str, ...]
    ties: bool
    rules: tuple[Rule, ...]
    metadata: Callable[[ModelConfig], Metadata]
    defaults: Mapping[str, Value] = field(default_factory=dict)
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
                if rule.bias != "never":
                    required = rule.bias == "must"
                    found.append(Tensor(f"{hf}.bias", f"{gguf}.bias", shape[:1], rule.transform, required))
        return found

    def hf_name(self, gguf_name: str) -> tuple[str, Transform | None] | None:
        """The HF name and the transform of a GGUF tensor; None for one that no HF tensor stands behind."""
        stem, _, kind = gguf_name.rpartition(".")
        layer = re.match(r"blk\.(\d{1,5})\.", stem)
        wanted = re.sub(r"^blk\.\d{1,5}\.", "blk.{}.", stem)
        for rule in self.rules:
            if rule.gguf == wanted and (kind == "weight" or (kind == "bias" and rule.bias != "never")):
                return f"{rule.hf.format(layer[1] if layer else '')}.{kind}", rule.transform
        return None


def dimensions(config: ModelConfig) -> dict[str, int]:
    """Sizes by the names that `Rule.shape` uses."""
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "gate_and_up": 2 * config.intermediate_size,
        "query": query,
        "key": key,
        "query_key_value": query + 2 * key,
        "head": config.head_dim,
        "vocabulary": config.vocab_size,
    }
