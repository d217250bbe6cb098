"""A GGUF file back as HF weights and metadata. Knows the format's reader and the architectures' inverses; no runtime."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from libgguf.inspect import GGUFFile, GGUFTensorInfo, inspect_gguf

from llmkit.errors import DataError
from llmkit.gguf import architectures
from llmkit.gguf.architectures import Array

# What reading the header of a cut or corrupted file can raise: bad values, absurd lengths, seeks beyond any file.
_DAMAGE = (ValueError, OverflowError, MemoryError, OSError, struct.error)


def metadata(path: Path) -> dict[str, Any]:
    """Every key of the file with its plain value; arrays as lists.

    Raises:
        DataError: the file is missing or damaged.
    """
    return {key: value.value for key, value in _open(path).metadata.items()}


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The weights under their HF names and in HF's layout, fp32, for `load_state_dict` of a model built from the HF config.

    A tied `lm_head.weight` is included, sharing the embedding's memory.

    Raises:
        DataError: the file is missing, damaged or holds a tensor this architecture does not have.
        UsageError: an architecture llmkit does not know.
    """
    file = _open(path)
    where = str(path)
    scalars = {key: value.value for key, value in file.metadata.items() if value.value_type != "ARRAY"}
    architecture = architectures.by_name(str(scalars.get("general.architecture")), where=where)
    prefix = f"{architecture.name}."
    own = {key.removeprefix(prefix): value for key, value in scalars.items() if key.startswith(prefix)}
    data = np.memmap(path, mode="r")
    weights: dict[str, torch.Tensor] = {}
    for info in file.tensors:
        if info.name == "rope_freqs.weight":
            continue
        found = architecture.hf_name(info.name)
        if found is None:
            raise DataError(f"tensor {info.name} has no place in {architecture.name}", where=where)
        weight = _dequantize(data, info, where=where)
        weights[found[0]] = _inverse(weight, found[1], own, info, where=where)
    if "model.embed_tokens.weight" not in weights:
        raise DataError("the file has no token embedding", where=where)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def _open(path: Path) -> GGUFFile:
    """The header, every tensor's bytes known to lie within the file."""
    try:
        file = inspect_gguf(path)
    except _DAMAGE as error:
        raise DataError(f"cannot read the GGUF file: {error}", where=str(path)) from None
    if len({info.name for info in file.tensors}) != len(file.tensors):
        raise DataError("the GGUF file names a tensor twice", where=str(path))
    for info in file.tensors:
        if info.nbytes is None or info.data_offset + info.nbytes > file.file_size:
            raise DataError(
                f"the GGUF file ends before tensor {info.name} does", where=str(path), next="write or download it again"
            )
    return file


def _dequantize(data: np.ndarray[Any, Any], info: GGUFTensorInfo, *, where: str) -> Array:
    shape = tuple(reversed(info.shape))
    raw = data[info.data_offset : info.data_offset + info.nbytes]
    try:
        kind = GGMLQuantizationType(info.qtype_value)
        rows = raw.reshape(gguf.quant_shape_to_byte_shape(shape, kind))
        return np.array(gguf.dequantize(rows, kind), np.float32).reshape(shape)
    except (ValueError, IndexError, NotImplementedError) as error:
        raise DataError(f"cannot decode tensor {info.name} ({info.qtype}): {error}", where=where) from None


def _inverse(
    weight: Array,
    transform: architectures.Transform | None,
    scalars: dict[str, Any],
    info: GGUFTensorInfo,
    *,
    where: str,
) -> torch.Tensor:
    if transform is None:
        return torch.from_numpy(weight)
    try:
        return torch.from_numpy(np.ascontiguousarray(transform.backward(weight, scalars)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"tensor {info.name} does not fit the file's metadata: {error}", where=where) from None
