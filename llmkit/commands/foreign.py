"""What a model or adapter folder that llmkit did not make says of itself. Knows Hugging Face's files; loads no weight."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import DataError

_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors' reference implementation
_MODEL = (
    "architectures",
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "tie_word_embeddings",
)
_ADAPTER = (
    "peft_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
)


def describe(folder: Path) -> dict[str, Any] | None:
    """The facts of a model or adapter folder, `kind` first; None where it is neither.

    Raises:
        DataError: a configuration or a safetensors header that is damaged.
    """
    from llmkit.gguf.tokenizer_files import read_json

    if (folder / "adapter_config.json").is_file():
        config = read_json(folder / "adapter_config.json")
        return {"kind": "adapter", **_chosen(config, _ADAPTER), **_weights(folder)}
    if not (folder / "config.json").is_file():
        return None
    whole = read_json(folder / "config.json")
    inner = whole.get("text_config")
    config = {**whole, **inner} if isinstance(inner, Mapping) else whole
    facts = {"kind": "model", **_chosen(config, _MODEL), "dtype": whole.get("dtype") or whole.get("torch_dtype")}
    quantization = whole.get("quantization_config")
    if isinstance(quantization, Mapping):
        facts["quantization"] = {key: value for key, value in quantization.items() if value not in (None, False, [])}
    tokenizer = read_json(folder / "tokenizer_config.json", required=False)
    facts["tokenizer"] = tokenizer.get("tokenizer_class")
    facts["chat_template"] = bool(tokenizer.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    return {**{key: value for key, value in facts.items() if value is not None}, **_weights(folder)}


def _chosen(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: config[key] for key in keys if config.get(key) is not None}


def _weights(folder: Path) -> dict[str, Any]:
    """Values, as stored, by the type they are stored in, and the bytes of all safetensors files."""
    stored: dict[str, int] = {}
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    for path in files:
        for dtype, count in _tensors(path):
            stored[dtype] = stored.get(dtype, 0) + count
    size = sum(path.stat().st_size for path in files)
    return {"stored_values": stored, "weights_bytes": size} if files else {}


def _tensors(path: Path) -> list[tuple[str, int]]:
    """Each tensor's type and number of values. Format: https://github.com/huggingface/safetensors#format"""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise ValueError("the header is longer than it may be")
            header = json.loads(stream.read(length))
        return [
            (str(one["dtype"]), math.prod(map(int, one["shape"]))) for name, one in header.items() if name != "__metadata__"
        ]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"damaged weights: {str(error)[:200]}", code="LK0308", where=str(path), next="download it again"
        ) from None
