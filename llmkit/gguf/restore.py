"""A GGUF model → an ordinary HF model folder, a few rows in memory at a time. Knows how the parts meet, and safetensors.

The weights of quantized types are sums of scaled whole numbers that need up to 24 bits: bf16 has 8, and rounding to it moves
them by up to 1/512. So `exact` stores each tensor in the smallest type that holds it: f16 and bf16 as they are, all else f32.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import orjson

from llmkit import progress
from llmkit.artifact import Facts
from llmkit.errors import DataError, MachineError
from llmkit.gguf import read, restored_config, restored_tokenizer
from llmkit.gguf.architectures import Array, ModelConfig
from llmkit.gguf.read import GgufModel, Weight
from llmkit.gguf.restored_tokenizer import Restored

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BESIDE = 1 << 26  # bytes kept free for the tokenizer and the rest


@dataclass(frozen=True)
class _Planned:
    """One tensor to write, in safetensors' type `stored`."""

    weight: Weight
    stored: str

    @property
    def bytes(self) -> int:
        return prod(self.weight.shape) * _BYTES[self.stored]


def restore(path: Path, out: Path, *, dtype: Literal["exact", "bf16"] = "exact") -> Facts:
    """Write the model that `path` holds, or is a part of, to the empty folder `out`.

    Facts: the architecture, the parameters, and `gguf_types`: HF tensor name → the type whose grid its weights lie on.

    Raises:
        DataError: a file is missing or damaged, has no tokenizer, or lacks a tensor; a weight is not finite.
        UsageError: an architecture or a tokenizer that llmkit cannot read back.
        MachineError: the disk has no room.
    """
    model = read.open_model(path)
    config = restored_config.config(model)
    tokenizer = restored_tokenizer.restore(
        model.metadata, rows=config["vocab_size"], context=config["max_position_embeddings"], where=str(path)
    )
    planned = _plan(model, config, dtype=dtype)
    needed = sum(item.bytes for item in planned) + _BESIDE
    free = shutil.disk_usage(out).free
    if free < needed:
        raise MachineError(
            f"the model needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free", code="LK0902", where=str(out)
        )
    try:
        _write_weights(out / "model.safetensors", model, planned)
        _write_beside(out, {**config, **tokenizer.ids, "dtype": _dtype(planned)}, tokenizer)
    except OSError as error:
        raise MachineError(f"cannot write the model: {error}", code="LK0903", where=str(out)) from None
    return {
        "architecture": model.architecture.name,
        "parameters": sum(prod(item.weight.shape) for item in planned),
        **({"licence": licence} if isinstance(licence := model.metadata.get("general.license"), str) else {}),
        "gguf_types": {item.weight.name: item.weight.info.type.name for item in planned},
    }


def _plan(model: GgufModel, config: Mapping[str, Any], *, dtype: str) -> list[_Planned]:
    """Every tensor that the architecture has, in the file's order, and no other."""
    where = str(model.path)
    expected = {tensor.hf: tensor for tensor in model.architecture.tensors(ModelConfig.model_validate(config))}
    found = {weight.name: weight for weight in model.weights}
    missing = [tensor.gguf for name, tensor in expected.items() if tensor.required and name not in found]
    if missing:
        raise DataError(f"the file lacks {len(missing)} tensors, {missing[0]} for one", code="LK0623", where=where)
    for name, weight in found.items():
        if name not in expected:
            raise DataError(f"tensor {weight.info.name} has no place in {model.architecture.name}", code="LK0623", where=where)
        if weight.shape != expected[name].shape:
            what = f"tensor {weight.info.name} has shape {list(weight.shape)}, the metadata say {list(expected[name].shape)}"
            raise DataError(what, code="LK0623", where=where)
    return [_Planned(weight, "BF16" if dtype == "bf16" else _exact(weight)) for weight in model.weights]


def _exact(weight: Weight) -> str:
    kept = weight.transform is None or weight.transform.moves
    return weight.info.type.name if kept and weight.info.type.name in _BYTES else "F32"


def _dtype(planned: list[_Planned]) -> str:
    """What config.json names: the widest type of a matrix."""
    stored = {item.stored for item in planned if len(item.weight.shape) > 1}
    return next(_NAMES[name] for name in _BYTES if name in stored)


def _write_weights(file: Path, model: GgufModel, planned: list[_Planned]) -> None:
    """One safetensors file (https://github.com/huggingface/safetensors#format), widest types first, so that all are aligned."""
    ordered = sorted(planned, key=lambda item: (-_BYTES[item.stored], item.weight.name))
    listing: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in ordered:
        start, end = end, end + item.bytes
        listing[item.weight.name] = {"dtype": item.stored, "shape": item.weight.shape, "data_offsets": [start, end]}
    header = orjson.dumps(listing)
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stream, progress.track(f"unpacking {model.path.name}", total=len(ordered)) as bar:
        stream.write(len(header).to_bytes(8, "little") + header)
        for item in ordered:
            _write_tensor(stream, model, item)
            bar.advance()


def _write_tensor(stream: BinaryIO, model: GgufModel, item: _Planned) -> None:
    for piece in model.chunks(item.weight):
        if not np.isfinite(piece).all():
            name = item.weight.info.name
            raise DataError(f"tensor {name} holds values that are not finite", code="LK0319", where=str(item.weight.file))
        stream.write(_stored(piece, item.stored).data)


def _stored(piece: Array, kind: str) -> Array:
    if kind == "F16":
        return piece.astype("<f2")
    if kind == "F32":
        return piece.astype("<f4", copy=False)
    bits = piece.view(np.uint32)  # to the nearest, ties to even, as torch rounds
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")


def _write_beside(out: Path, config: Mapping[str, Any], tokenizer: Restored) -> None:
    stops = list(tokenizer.stops)
    generation = {**tokenizer.ids, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {key: value for key, value in generation.items() if value is not None})
    _write_json(out / "tokenizer_config.json", tokenizer.settings)
    (out / "tokenizer.json").write_bytes(orjson.dumps(tokenizer.tokenizer))
    if tokenizer.template:
        (out / "chat_template.jinja").write_text(tokenizer.template, "utf-8")


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
