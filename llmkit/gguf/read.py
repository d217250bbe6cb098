"""A GGUF model back as HF weights and metadata. Knows the container and the architectures' inverses; no runtime."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import libgguf
import numpy as np
from gguf import GGMLQuantizationType

from llmkit.errors import DataError
from llmkit.gguf import architectures
from llmkit.gguf.architectures import Architecture, Array, Transform
from llmkit.gguf.container import TensorInfo, open_split

if TYPE_CHECKING:
    import torch

_MAX_NAME = 40  # characters; no architecture's is longer
_MOST_FREQUENCIES = 1 << 16  # of a head: they are decoded before a shape is checked
_CHUNK_ELEMENTS = 1 << 20  # fp32 working memory of 4 MiB, which stays in the cache


@dataclass(frozen=True)
class Weight:
    """One weight, still in its file. `name` is HF's; `shape` is that of both sides, for no transform changes it."""

    name: str
    info: TensorInfo
    file: Path
    transform: Transform | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape


@dataclass(frozen=True)
class GgufModel:
    """One model, in one file or in parts. `own`: the architecture's scalars without its prefix; `rotary`: by GGUF name."""

    path: Path
    metadata: Mapping[str, Any]
    architecture: Architecture
    own: Mapping[str, architectures.Value]
    weights: tuple[Weight, ...]
    rotary: Mapping[str, Array]

    def chunks(self, weight: Weight) -> Iterator[Array]:
        """The weight in HF's layout, float32, in pieces of whole rows; one piece where a transform needs all of it.

        Raises:
            DataError: the file cannot be read or decoded, or its metadata do not fit the tensor.
        """
        if weight.transform is None:
            yield from _decode(weight.file, weight.info)
            return
        whole = np.concatenate(list(_decode(weight.file, weight.info)))
        try:
            yield np.ascontiguousarray(weight.transform.backward(whole, self.own))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"tensor {weight.info.name} does not fit the file's metadata: {error}"
            raise DataError(what, code="LK0601", where=str(weight.file)) from None


def metadata(path: Path) -> dict[str, Any]:
    """Every key of the model with its plain value; arrays as lists.

    Raises:
        DataError: a file is missing or damaged.
    """
    return dict(open_split(path)[0].metadata)


def open_model(path: Path) -> GgufModel:
    """The model that `path` holds or is a part of; no weight is read yet.

    Raises:
        DataError: a file is missing, damaged, no model, or holds a tensor this architecture does not have.
        UsageError: an architecture llmkit does not know.
    """
    parts = open_split(path)
    metadata, where = parts[0].metadata, str(path)
    if metadata.get("general.type", "model") != "model":
        raise DataError(
            f"this GGUF file holds no model but {reprlib.repr(metadata['general.type'])}", code="LK0601", where=where
        )
    architecture = architectures.by_name(str(metadata.get("general.architecture"))[:_MAX_NAME], where=where)
    prefix = f"{architecture.name}."
    own = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and not isinstance(value, list)
    }
    weights: list[Weight] = []
    rotary: dict[str, Array] = {}
    for part in parts:
        for info in part.tensors:
            if info.name in architectures.COMPUTED:
                if prod(info.shape) > _MOST_FREQUENCIES:
                    raise DataError(
                        f"tensor {info.name} has the impossible shape {list(info.shape)}", code="LK0601", where=where
                    )
                rotary[info.name] = np.concatenate(list(_decode(part.path, info)))
                continue
            found = architecture.hf_name(info.name)
            if found is None:
                raise DataError(f"tensor {info.name} has no place in {architecture.name}", code="LK0601", where=where)
            weights.append(Weight(found[0], info, part.path, found[1]))
    if "model.embed_tokens.weight" not in {weight.name for weight in weights}:
        raise DataError("the file has no token embedding", code="LK0601", where=where)
    return GgufModel(path, metadata, architecture, own, tuple(weights), rotary)


def state_dict(path: Path) -> "dict[str, torch.Tensor]":
    """The weights under their HF names and in HF's layout, fp32, for `load_state_dict` of a model built from the HF config.

    A tied `lm_head.weight` is included, sharing the embedding's memory.

    Raises:
        DataError: a file is missing, damaged or holds a tensor this architecture does not have.
        UsageError: an architecture llmkit does not know.
    """
    import torch

    model = open_model(path)
    found: dict[str, torch.Tensor] = {}
    for weight in model.weights:
        whole = np.empty(weight.shape, np.float32)
        start = 0
        for piece in model.chunks(weight):
            whole[start : start + len(piece)] = piece
            start += len(piece)
        found[weight.name] = torch.from_numpy(whole)
    found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found


def _decode(path: Path, info: TensorInfo) -> Iterator[Array]:
    """The tensor as float32, a few rows (along its first dimension) at a time."""
    rows = info.shape[0] if len(info.shape) > 1 else 1
    bytes_per_row = info.size // rows
    step = max(1, _CHUNK_ELEMENTS * rows // int(np.prod(info.shape, dtype=np.int64)))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        shape = (count, *info.shape[1:]) if len(info.shape) > 1 else info.shape
        try:
            raw = np.fromfile(path, np.uint8, count * bytes_per_row, offset=info.offset + start * bytes_per_row)
            yield _floats(raw, info.type, shape)
        except (OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"cannot decode tensor {info.name} ({info.type.name}): {error}", code="LK0601", where=str(path)
            ) from None


def _floats(raw: Array, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> Array:
    # Bit for bit alike, but libgguf is ten times as fast and knows the quantized types only.
    decode = libgguf.dequantize_rows if gguf.GGML_QUANT_SIZES[kind][0] > 1 else gguf.dequantize
    rows = raw.reshape(gguf.quant_shape_to_byte_shape((int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]), kind))
    return np.array(decode(rows, kind), np.float32).reshape(shape)
