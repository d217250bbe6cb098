"""The GGUF container, read as what a stranger wrote. Knows bytes, types and bounds; nothing of what keys and tensors mean.

Follows the specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and, where that is silent, what
llama.cpp's gguf.cpp accepts: versions 2 and 3, little-endian. Every count and length is checked against what is left of the
file before anything is allocated for it.
"""

import mmap
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llmkit.errors import DataError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # where the file does not say
_MAX_DIMENSIONS = 4
_MAX_NAME = 63  # bytes; llama.cpp's tensors have room for no more
_MAX_DEPTH = 4  # of arrays in arrays; llama.cpp has none
# Far above any real file (262,144 tokens with scores and types: 16 MB, 800,000 elements), and still little memory.
_MAX_HEADER = 1 << 28
_MAX_ELEMENTS = 1 << 22
_MOST_ENTRIES = 1 << 16  # keys, or tensors: the largest models have some thousands
_LARGEST = (1 << 63) - 1
_STRING, _ARRAY = 8, 9
# GGUF's numbers for the plain value types → struct's.
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SHORTEST_PAIR, _SHORTEST_TENSOR = 14, 33  # bytes of a key and value, and of a tensor's entry, with names of one byte
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MAX_WORDS = 300  # characters of an error
_BROKEN_COPY = "write or download it again"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. `shape` is numpy's, rows last; `offset` counts from the file's start; `size` is in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """What stands in one file's header; the tensors' bytes are known to lie within the file, none over another."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    alignment: int


def open_file(path: Path) -> GgufFile:
    """The header of one GGUF file; of a model in parts, of that part. Arrays are lists, strings UTF-8 with `�` for damage.

    Raises:
        DataError: the file is missing, cut short, damaged or not GGUF.
    """
    try:
        if not path.is_file():  # a pipe would block, and may have no end
            raise DataError("no such GGUF file", code="LK0113", where=str(path))
        size = path.stat().st_size
        if size < 24:
            raise DataError("this is no GGUF file: it is too short", code="LK0601", where=str(path))
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), min(size, _MAX_HEADER), access=mmap.ACCESS_READ) as view:
            return _Reader(path, view, size).file()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"cannot read the GGUF file: {error}", code="LK0601", where=str(path)) from None


def open_split(path: Path) -> tuple[GgufFile, ...]:
    """Every part of the model that `path` belongs to, in order; the first holds the metadata. One file is its own only part.

    Parts stand side by side as `NAME-00001-of-00003.gguf`, and any of them may be given.

    Raises:
        DataError: a part is missing, damaged or of another model.
    """
    given = open_file(path)
    count = given.metadata.get("split.count", 1)
    if count in (0, 1):
        return (given,)
    named = _PART.fullmatch(path.name)
    if named is None or type(count) is not int or count != int(named[3]):
        raise DataError(
            f"this file says that it is one of {reprlib.repr(count)} parts, and its name does not",
            code="LK0602",
            where=str(path),
            next="name the parts NAME-00001-of-0000N.gguf",
        )
    paths = [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(f"{len(missing)} of {count} parts are missing: {listed}", code="LK0602", where=str(path.parent))
    parts = tuple(given if part == path else open_file(part) for part in paths)
    _check_parts(parts)
    return parts


def _check_parts(parts: tuple[GgufFile, ...]) -> None:
    total = parts[0].metadata.get("split.tensors.count")
    for number, part in enumerate(parts):
        stands = tuple(part.metadata.get(f"split.{key}") for key in ("no", "count", "tensors.count"))
        if stands != (number, len(parts), total):
            raise DataError(
                f"this is not part {number + 1} of {len(parts)} of the same model", code="LK0602", where=str(part.path)
            )
    names = [tensor.name for part in parts for tensor in part.tensors]
    if len(set(names)) != len(names) or len(names) != total:
        raise DataError(
            f"the parts hold {len(set(names))} tensors, not {reprlib.repr(total)}", code="LK0602", where=str(parts[0].path)
        )


class _Reader:
    """Walks through a header. Each method reads at the position and moves it on; beyond the end is a DataError."""

    def __init__(self, path: Path, view: mmap.mmap, size: int) -> None:
        self._path = path
        self._view = view
        self._size = size
        self._end = len(view)
        self._at = 0
        self._elements = _MAX_ELEMENTS

    def file(self) -> GgufFile:
        if self._take(4, "the magic") != _MAGIC:
            raise self._damage("this is no GGUF file")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            what = "a big-endian GGUF file" if version and not version & 0xFFFF else f"GGUF version {version}"
            raise self._damage(what, next="known: versions 2 and 3, little-endian")
        tensors = self._count("tensors", _SHORTEST_TENSOR)
        pairs = self._count("keys", _SHORTEST_PAIR)
        metadata = self._metadata(pairs)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._damage(f"general.alignment is {reprlib.repr(alignment)}, not a power of two")
        entries = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // alignment) * alignment
        placed = tuple(self._placed(entry, start, alignment) for entry in entries)
        self._check_places(placed)
        return GgufFile(self._path, version, metadata, placed, alignment)

    def _metadata(self, pairs: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._name("a key")
            if key in found:
                raise self._damage(f"the key {key} stands there twice")
            found[key] = self._value(self._number("I", key), key)
        return found

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _PLAIN:
            return self._number(_PLAIN[kind], key)
        if kind == _STRING:
            return self._strings(1, key)[0]
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        raise self._damage(f"the key {key} has the unknown type {kind}")

    def _array(self, key: str, depth: int) -> list[Any]:
        kind, count = self._number("I", key), self._number("Q", key)
        width = struct.calcsize(f"<{_PLAIN[kind]}") if kind in _PLAIN else 8 if kind == _STRING else 12
        if depth > _MAX_DEPTH or count > self._elements or count * width > self._end - self._at:
            raise self._damage(f"the array {key} of {count} values does not fit the file")
        self._elements -= count
        if kind in _PLAIN:
            return list(struct.unpack(f"<{count}{_PLAIN[kind]}", self._take(count * width, key)))
        if kind == _STRING:
            return self._strings(count, key)
        return [self._value(kind, key, depth) for _ in range(count)]

    def _strings(self, count: int, key: str) -> list[str]:
        """One loop without calls: a vocabulary has hundreds of thousands."""
        view, at, end, length_of = self._view, self._at, self._end, struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            if end - at < 8 or (length := length_of(view, at)[0]) > end - at - 8:
                raise self._cut(key)
            at += 8
            # llama.cpp takes any bytes: what it loads must be readable here, if only to say what is wrong with it.
            found.append(view[at : at + length].decode("utf-8", "replace"))
            at += length
        self._at = at
        return found

    def _tensor(self) -> TensorInfo:
        """An entry of the tensor list; its offset still counts from the start of the data."""
        name = self._name("a tensor's name")
        if len(name.encode()) > _MAX_NAME:
            raise self._damage(f"the tensor name {name[:40]}… is longer than {_MAX_NAME} bytes")
        dimensions = self._number("I", name)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damage(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions, name))))
        if min(shape) == 0 or prod(shape) > _LARGEST:
            raise self._damage(f"tensor {name} has the impossible shape {list(shape)}")
        code, offset = self._number("I", name), self._number("Q", name)
        try:
            kind = GGMLQuantizationType(code)
            block, bytes_per_block = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise self._damage(f"tensor {name} has the unknown type {code}") from None
        if shape[-1] % block:
            raise self._damage(f"tensor {name} has rows of {shape[-1]}, and {kind.name} packs {block} together")
        return TensorInfo(name, shape, kind, offset, prod(shape) // block * bytes_per_block)

    def _placed(self, entry: TensorInfo, start: int, alignment: int) -> TensorInfo:
        if entry.offset % alignment:
            raise self._damage(f"tensor {entry.name} is not aligned to {alignment} bytes")
        if start + entry.offset + entry.size > self._size:
            raise self._damage(f"the GGUF file ends before tensor {entry.name} does", next=_BROKEN_COPY)
        return TensorInfo(entry.name, entry.shape, entry.type, start + entry.offset, entry.size)

    def _check_places(self, tensors: tuple[TensorInfo, ...]) -> None:
        names: set[str] = set()
        for tensor in tensors:
            if tensor.name in names:
                raise self._damage(f"the GGUF file names the tensor {tensor.name} twice")
            names.add(tensor.name)
        ordered = sorted(tensors, key=lambda tensor: tensor.offset)
        for before, after in pairwise(ordered):
            if before.offset + before.size > after.offset:
                raise self._damage(f"the tensors {before.name} and {after.name} overlap")

    def _name(self, what: str) -> str:
        length = self._number("Q", what)
        try:
            name = self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damage(f"{what} is not UTF-8") from None
        if not name or not name.isprintable():
            raise self._damage(f"{what} is {name!r}")
        return name

    def _count(self, what: str, shortest: int) -> int:
        count = self._number("Q", f"the number of {what}")
        if count > min(_MOST_ENTRIES, self._size // shortest):
            raise self._damage(f"the file cannot hold {count} {what}")
        return count

    def _number(self, kind: str, what: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}"), what))[0]

    def _take(self, length: int, what: str) -> bytes:
        if length > self._end - self._at:
            raise self._cut(what)
        self._at += length
        return self._view[self._at - length : self._at]

    def _cut(self, what: str) -> DataError:
        if self._end < self._size:
            return self._damage(f"the header is larger than {_MAX_HEADER >> 20} MiB: {what} lies beyond that")
        return self._damage(f"the file ends within {what}", next=_BROKEN_COPY)

    def _damage(self, what: str, next: str = "") -> DataError:
        what = what if len(what) <= _MAX_WORDS else f"{what[:_MAX_WORDS]}…"  # names, and with them words, may be megabytes long
        return DataError(what, code="LK0601", where=str(self._path), next=next)
