"""The first part of a GGUF file: its keys and where its tensors lie. Knows the format's bytes; nothing of what they mean.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT as ALIGNMENT
from gguf import GGMLQuantizationType, GGUFValueType

from llmkit.errors import DataError

_VERSION = 3
_SCALARS = {
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.FLOAT32: "<f",
}
_NUMPY = {np.uint16: GGUFValueType.UINT16, np.int32: GGUFValueType.INT32}


@dataclass(frozen=True)
class Slot:
    """A tensor's place. `shape` is HF's, rows last; `offset` in bytes from the start of the file's tensor data."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int


def encode(metadata: Mapping[str, Any], slots: Sequence[Slot]) -> bytes:
    """Everything before the tensors, filled up to the alignment.

    A whole number is written as uint32 (numpy's uint16 and int32 as they are), a fraction as float32, a list as an array of
    what its first member is, whole numbers there as int32.

    Raises:
        DataError: a value that the format cannot hold, such as text that is no Unicode.
    """
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(slots), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_text(key), *_value(value)]
        except (struct.error, UnicodeEncodeError, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"GGUF cannot hold {key}: {error}", code="LK0604", where=f"{str(value)[:40]!r}") from None
    for slot in slots:
        rank = len(slot.shape)
        parts += [_text(slot.name), struct.pack(f"<I{rank}QIQ", rank, *slot.shape[::-1], slot.type, slot.offset)]
    size = sum(map(len, parts))
    return b"".join([*parts, bytes(-size % ALIGNMENT)])


def aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _value(value: Any) -> list[bytes]:
    kind = _kind(value)
    if kind is GGUFValueType.STRING:
        return [struct.pack("<I", kind), _text(value)]
    if kind is not GGUFValueType.ARRAY:
        return [struct.pack("<I", kind), struct.pack(_SCALARS[kind], value)]
    members = GGUFValueType.INT32 if type(value[0]) is int else _kind(value[0])
    opening = struct.pack("<IIQ", kind, members, len(value))
    if members is GGUFValueType.STRING:
        return [opening, *map(_text, value)]
    return [opening, struct.pack(f"<{len(value)}{_SCALARS[members][1]}", *value)]


def _kind(value: Any) -> GGUFValueType:
    """bool first: it is an int too."""
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if type(value) in _NUMPY:
        return _NUMPY[type(value)]
    for known, kind in ((int, GGUFValueType.UINT32), (float, GGUFValueType.FLOAT32), (str, GGUFValueType.STRING)):
        if isinstance(value, known):
            return kind
    if isinstance(value, Sequence) and value:
        return GGUFValueType.ARRAY
    raise TypeError(f"a {type(value).__name__} has no place in it")


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
