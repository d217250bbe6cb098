"""A model's tensors and the sizes that memory depends on, from its config.json alone. Knows no weights and no torch.

Families that can become GGUF come from that table, in milliseconds; any other from transformers (`engine.shapes`), once,
and then from the shared cache.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from llmkit import artifact, origin
from llmkit.errors import DataError, UsageError
from llmkit.gguf import architectures
from llmkit.gguf.architectures import Architecture, ModelConfig

Kind = Literal["embedding", "head", "linear", "other"]
LARGEST = 10**15  # elements of a tensor: beyond it a config.json tells nonsense
_REVISION = 1  # of what is kept in the cache
# Gemma 2 and 3 in transformers, where the file does not say it: every so many layers one attends to everything.
_PERIODS = {"gemma2": 2, "gemma3": 6}


@dataclass(frozen=True)
class Tensor:
    """One weight. `gguf`: its name there, "" where the family has none; `kind`: what may be done to it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    gguf: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shape:
    """What of a model the plan asks for.

    `family`: GGUF's name, "" where llmkit cannot export it; `tied`: the embedding makes the logits; `norms`: of a layer, over
    the hidden state; `head_norms`: over queries and keys; `softcap`: attention is written out; `windows`: what each layer's
    attention reaches back to, None for everything; `computed`: shapes of tensors that only a GGUF has, by name.
    """

    family: str
    tensors: tuple[Tensor, ...]
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    tied: bool
    norms: int
    head_norms: bool
    softcap: bool
    windows: tuple[int | None, ...]
    computed: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def parameters(self) -> int:
        """Tied embeddings count once, as they are saved."""
        return sum(one.elements for one in self.tensors)

    def elements(self, *kinds: Kind) -> int:
        return sum(one.elements for one in self.tensors if one.kind in kinds)

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.key_value_heads * self.head_dim


def of_config(raw: Mapping[str, Any], *, where: str) -> Shape:
    """The shape that a config.json describes.

    Raises:
        DataError: a key is missing, of the wrong type or out of all bounds, or transformers does not know the architecture.
    """
    try:
        architecture, config = architectures.parse(raw, where=where)
    except UsageError:  # not in the table
        return _of_transformers(raw, where=where)
    except DataError as error:
        raise DataError(error.what, code="LK0950", where=error.where or where, next=error.next or _REMEDY) from None
    if architecture.name != "llama" and (raw.get("attention_bias") or raw.get("mlp_bias")):
        return _of_transformers(raw, where=where)  # which GGUF has no place for
    return _bounded(_of_table(raw, architecture, config), where)


_REMEDY = "take the config.json that came with the model"


def _of_table(raw: Mapping[str, Any], architecture: Architecture, config: ModelConfig) -> Shape:
    biased = [part for part, key in ((".self_attn.", "attention_bias"), (".mlp.", "mlp_bias")) if raw.get(key)]
    found = [
        Tensor(one.hf, one.shape, _kind(one.hf, one.shape), one.gguf)
        for one in architecture.tensors(config)
        if one.required or any(part in one.hf for part in biased)
    ]
    first = [one for one in found if ".layers.0." in one.name and len(one.shape) == 1 and "norm" in one.name]
    computed: dict[str, Any] = {}
    with suppress(UsageError, DataError, ValueError, ZeroDivisionError, OverflowError):  # export tells of it
        computed = dict(architecture.computed(config))
    return Shape(
        family=architecture.name,
        tensors=tuple(found),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        tied=architecture.tied(config),
        norms=sum("self_attn" not in one.name for one in first),
        head_norms=any("self_attn" in one.name for one in first),
        softcap=architecture.name == "gemma2" and bool(config.attn_logit_softcapping),
        windows=_windows(raw, config.num_hidden_layers, _PERIODS.get(architecture.name), config.sliding_window),
        computed=tuple((name, tuple(ready.shape)) for name, ready in computed.items()),
    )


def _of_transformers(raw: Mapping[str, Any], *, where: str) -> Shape:
    place = origin.cache_folder() / "shapes" / f"{artifact.digest(_REVISION, json.dumps(raw, sort_keys=True))[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _bounded(of_plain(json.loads(place.read_text("utf-8"))), where)
    from llmkit.engine import shapes

    plain = shapes.describe(raw, where=where)
    found = _bounded(of_plain(plain), where)
    with suppress(OSError):  # a cache that cannot be written costs seconds the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_json(place, plain)
    return found


def of_plain(plain: Mapping[str, Any]) -> Shape:
    """The shape that `engine.shapes.describe` gave, or the cache; KeyError, TypeError or ValueError for anything else."""
    sizes: dict[str, Any] = {key: int(plain[key]) for key in _SIZES}
    flags: dict[str, Any] = {key: bool(plain[key]) for key in ("tied", "head_norms", "softcap")}
    windows = tuple(None if one is None else int(one) for one in plain["windows"])
    tensors = tuple(Tensor(str(name), tuple(map(int, shape)), kind) for name, shape, kind in plain["tensors"])
    return Shape(family="", tensors=tensors, windows=windows, **sizes, **flags)


_SIZES = ("hidden", "heads", "key_value_heads", "head_dim", "feed_forward", "vocabulary", "context", "norms")


def _bounded(shape: Shape, where: str) -> Shape:
    if any(one.elements > LARGEST for one in shape.tensors):
        raise DataError("config.json describes a tensor of over 10^15 numbers", code="LK0950", where=where, next=_REMEDY)
    if any(0 in one.shape for one in shape.tensors):
        raise DataError("config.json describes a tensor of no numbers at all", code="LK0950", where=where, next=_REMEDY)
    return shape


def _kind(name: str, shape: tuple[int, ...]) -> Kind:
    named: dict[str, Kind] = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}
    return named.get(name, "linear" if len(shape) == 2 else "other")


def _windows(raw: Mapping[str, Any], layers: int, period: int | None, window: int | None) -> tuple[int | None, ...]:
    """As transformers' configurations have it; Qwen's window is off unless `use_sliding_window`."""
    if not window or raw.get("use_sliding_window") is False:
        return (None,) * layers
    kinds = raw.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if period:
        return tuple(window if number % period else None for number in range(1, layers + 1))
    return (window,) * layers
