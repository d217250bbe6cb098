"""The safetensors files of a model folder: where each tensor lies. Knows the format; nothing of what tensors mean.

Read with plain reads, never mapped, so that memory holds what is being worked on and nothing else.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.gguf.tokenizer import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What can be exported, by the format's names, and the numpy type its bytes are read as: numpy has no bf16.
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_MOST_DIMENSIONS = 8
_LONGEST_HEADER = 100_000_000  # bytes; the reference implementation's limit


@dataclass(frozen=True)
class Stored:
    """One tensor: `offset` in bytes from the start of its file, `dtype` by the format's name."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """Maps tensor names to where they lie; reads headers only."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder holds no readable safetensors, or its index is damaged or leads elsewhere."""
        self._folder = folder
        self._stored = self._locate()

    @property
    def names(self) -> set[str]:
        return set(self._stored)

    def __getitem__(self, name: str) -> Stored:
        """Raises DataError for a tensor that is missing or holds no plain floats."""
        if name not in self._stored:
            raise DataError(f"the weights have no tensor {name}", code="LK0308", where=str(self._folder))
        stored = self._stored[name]
        if stored.dtype not in FLOATS:
            raise DataError(
                f"tensor {name} holds {stored.dtype}, not {', '.join(FLOATS)}",
                code="LK0309",
                where=str(stored.path),
                next="export the merged model, not a quantized one",
            )
        return stored

    def _locate(self) -> dict[str, Stored]:
        if (self._folder / _SINGLE).is_file():
            return header(self._folder / _SINGLE)
        if not (self._folder / _INDEX).is_file():
            raise DataError(
                "the model folder has no safetensors weights",
                code="LK0308",
                where=str(self._folder),
                next=f"expected {_SINGLE}",
            )
        listed = read_json(self._folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(_plain(file) for file in listed.values()):
            raise DataError(
                "the safetensors index is damaged or leads out of its folder", code="LK0308", where=str(self._folder / _INDEX)
            )
        shards = {file: header(self._folder / file) for file in sorted(set(listed.values()))}
        for name, file in listed.items():
            if name not in shards[file]:
                raise DataError(
                    f"the index puts tensor {name} in {file}, which has none", code="LK0308", where=str(self._folder / _INDEX)
                )
        return {name: shards[file][name] for name, file in listed.items()}


def header(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file.

    Raises:
        DataError: the file is missing, cut short or not what the format says: tensors lie one behind the other and fill it.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise ValueError("it is no file")
        with path.open("rb") as stream:
            size = path.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("the header is longer than the file")
            listed = json.loads(stream.read(length), object_pairs_hook=_once)
        listed.pop("__metadata__", None)
        found = {name: _stored(path, entry, start=8 + length) for name, entry in listed.items()}
        end = 8 + length
        for name, stored in sorted(found.items(), key=lambda item: (item[1].offset, math.prod(item[1].shape))):
            if stored.offset != end:
                raise ValueError(f"tensor {name} lies at byte {stored.offset}, not {end}")
            end += math.prod(stored.shape) * _BITS.get(stored.dtype, 8) // 8
        if end != size:
            raise ValueError(f"it should have {end} bytes and has {size}")
        return found
    except FileNotFoundError:
        raise DataError(
            f"the weights' file {path.name} is missing", code="LK0308", where=str(path.parent), next="download it again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"cannot read the weights: {str(error)[:200]}", code="LK0308", where=str(path), next="download or save them again"
        ) from None


def _stored(path: Path, entry: Mapping[str, Any], *, start: int) -> Stored:
    shape, (first, last), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions")
    if not isinstance(dtype, str) or not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, first, last)):
        raise ValueError("a shape or an offset is no whole number")
    if last - first != math.prod(shape) * _BITS.get(dtype, 8) // 8:
        raise ValueError(f"a tensor of shape {list(shape)} and type {dtype} cannot have {last - first} bytes")
    return Stored(path, start + first, dtype, shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _plain(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file not in ("", ".", "..") and "\0" not in file
