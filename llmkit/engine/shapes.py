"""The tensors that a config.json makes in transformers: names, shapes, what is tied. No weights, no code of the model's own.

The model is built on the meta device, whose tensors have no memory.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.engine.loading import BROKEN
from llmkit.errors import DataError

# A module is made for each layer and each expert: what no published model has would only take time.
MOST_LAYERS, MOST_EXPERTS, MOST_NUMBER = 512, 1024, 2**31
_MOST_DEPTH, _MOST_ITEMS = 16, 100_000
_NEXT = "take the config.json that came with the model; what transformers does not know itself cannot be planned"


def describe(raw: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """What `planning.shapes.Shape` holds, as plain data; a tensor is [name, shape, kind].

    Raises:
        DataError: transformers does not know the architecture, cannot build it, or a number is out of all bounds.
    """
    _require_sane(raw, where)
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise DataError("config.json names no model_type", code="LK0950", where=where, next=_NEXT)
    plain = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map", "quantization_config")}
    try:
        config = AutoConfig.for_model(kind, **plain)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (*BROKEN, StrictDataclassError, ImportError, ArithmeticError, AssertionError, LookupError, RecursionError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"transformers builds no model of this config.json: {what}", code="LK0950", where=where, next=_NEXT
        ) from None
    text = config.get_text_config()
    return {**_sizes(text), **_layers(text, model), "tensors": list(_tensors(model))}


def _tensors(model: Any) -> Iterator[list[Any]]:
    """Each weight once, as it is saved: a tied one under the name of what it is tied to."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = set(model.all_tied_weights_keys)
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in tied:
            continue
        kind = "linear" if id(weight) in linear or len(weight.shape) > 2 else "other"
        if embedding is not None and weight is embedding.weight:
            kind = "embedding"
        elif head is not None and weight is head.weight:
            kind = "head"
        yield [name, list(weight.shape), kind]


def _sizes(config: Any) -> dict[str, int]:
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads", 1)
    return {
        "hidden": hidden,
        "heads": heads,
        "key_value_heads": _number(config, "num_key_value_heads", heads),
        "head_dim": _number(config, "head_dim", max(1, hidden // heads)),
        "feed_forward": _number(config, "intermediate_size", 4 * hidden),
        "vocabulary": _number(config, "vocab_size"),
        "context": _number(config, "max_position_embeddings", 2048),
    }


def _layers(config: Any, model: Any) -> dict[str, Any]:
    count, window = _number(config, "num_hidden_layers", 1), getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", None) is False:
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * count
    names = [name for name, weight in model.named_parameters() if ".0." in name and len(weight.shape) == 1 and "norm" in name]
    return {
        "tied": bool(model.all_tied_weights_keys),
        "norms": sum("attn." not in name for name in names) or 2,
        "head_norms": any("attn." in name for name in names),
        "softcap": bool(getattr(config, "attn_logit_softcapping", None)),
        "windows": [window if kind == "sliding_attention" else None for kind in kinds],
    }


def _number(config: Any, name: str, default: int | None = None) -> int:
    """A list (a size for each layer) counts as its largest."""
    found = getattr(config, name, None)
    if isinstance(found, list | tuple) and found:
        found = max(found)
    if isinstance(found, int) and found > 0:
        return found
    if default is None:
        raise DataError(f"config.json has no {name}", code="LK0950", next=_NEXT)
    return default


def _require_sane(raw: Mapping[str, Any], where: str) -> None:
    """Refuse what would take minutes or memory to build, before it is built."""
    waiting: list[tuple[str, Any, int]] = [("", raw, 0)]
    seen = 0
    while waiting:
        key, value, depth = waiting.pop()
        seen += 1
        if seen > _MOST_ITEMS or depth > _MOST_DEPTH:
            raise DataError("config.json holds too much to be one", code="LK0950", where=where, next=_NEXT)
        if isinstance(value, Mapping):
            waiting += [(str(name), one, depth + 1) for name, one in value.items()]
        elif isinstance(value, list):
            waiting += [(key, one, depth + 1) for one in value]
        elif isinstance(value, int | float) and not abs(value) <= _bound(key):
            shown = f"{value:.3g}" if math.isfinite(value) else value
            raise DataError(f"config.json: {key} cannot be {shown}", code="LK0950", where=where, next=_NEXT)


def _bound(key: str) -> float:
    if "layers" in key or key in ("n_layer", "depth"):
        return MOST_LAYERS
    if "experts" in key:
        return MOST_EXPERTS
    return MOST_NUMBER if key.endswith(("_size", "_dim", "heads", "embeddings", "rank")) else 1e40
