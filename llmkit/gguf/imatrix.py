"""Importance matrices in llama.cpp's files: how much each input column of a layer matters. Knows files; not measuring.

Follows llama.cpp's tools/imatrix/imatrix.cpp (what is written) and common/imatrix-loader.cpp (what is read): a GGUF file with
the sum of x² per input column and the number of rows summed, or the older binary file with means times a number of calls.
"""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from llmkit.errors import DataError, MachineError
from llmkit.gguf import container
from llmkit.gguf.architectures import Array, Tensor

CHUNK_TOKENS = 512  # llama.cpp counts its data in chunks of its default context
_SUMS, _COUNTS = ".in_sum2", ".counts"
# The matrix of a 405B model has 70 MB.
_MAX_BYTES = 1 << 30
_MAX_NAME_BYTES = 63
_LARGEST_COUNT = 2.0**53
_HOW = "make it anew, or with llama.cpp's llama-imatrix"


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. `sums`: GGUF tensor name → Σ x² per input column, float32 [width]; `counts`: its number of rows.

    `datasets`: what it was measured on, in words; `chunks` of `chunk_size` tokens each (0 where an older file does not say).
    """

    sums: Mapping[str, Array]
    counts: Mapping[str, int]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = CHUNK_TOKENS

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.sums)

    def importance(self, name: str) -> Array | None:
        """The mean of x² per input column of the tensor `name`, float32 [width], as llama-quantize computes it to the bit.

        None where the matrix does not cover the tensor; ones where it names the tensor but saw no row of its input.
        """
        if name not in self.sums:
            return None
        sums, count = self.sums[name], self.counts[name]
        return sums / np.float32(count) if count > 0 else np.ones_like(sums)

    def require_fit(self, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Refuse the matrix of another model. `tensors`: GGUF names and shapes, rows last.

        Raises:
            DataError: a width differs, or no name is the model's.
        """
        shapes = dict(tensors)
        for name, sums in self.sums.items():
            if name in shapes and shapes[name][-1] != len(sums):
                raise DataError(
                    f"this importance matrix is another model's: {name} has {shapes[name][-1]} columns, not {len(sums)}",
                    code="LK0611",
                    next=_HOW,
                )
            if name.startswith("blk.") and name not in shapes:
                raise DataError(f"this importance matrix is another model's: there is no {name} here", code="LK0611", next=_HOW)
        if not self.names & shapes.keys():
            raise DataError("this importance matrix covers no tensor of the model", code="LK0611", next=_HOW)


def measured(tensors: Iterable[Tensor]) -> dict[str, str]:
    """HF weight name → GGUF name of the tensors that llama.cpp measures: the matrices of the layers.

    Embedding and output head are not among them, tied or not (llama-imatrix without --process-output).
    """
    return {tensor.hf: tensor.gguf for tensor in tensors if tensor.gguf.startswith("blk.") and len(tensor.shape) == 2}


def from_measured(found: Mapping[str, tuple[Array, int]], *, dataset: str) -> Imatrix:
    """What was measured (GGUF name → Σ x² per column, rows), with `dataset` saying on what."""
    counts = {name: rows for name, (_, rows) in found.items()}
    chunks = max(counts.values(), default=0) // CHUNK_TOKENS
    return Imatrix({name: np.asarray(sums, np.float32) for name, (sums, _) in found.items()}, counts, (dataset,), chunks)


def read(path: Path) -> Imatrix:
    """The importance matrix in `path`: llama.cpp's GGUF file, or the older .dat.

    Raises:
        DataError: the file is missing, damaged, no importance matrix, or one of a mixture of experts.
    """
    try:
        if not path.is_file():  # a pipe would block, and may have no end
            raise ValueError("no such file")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(f"this is no importance matrix: it has {size} bytes", code="LK0611", where=str(path), next=_HOW)
        with path.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
            stream.seek(0)
            return _read_gguf(stream, path) if is_gguf else _Legacy(stream, path, size).read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"cannot read the importance matrix: {error}", code="LK0113", where=str(path)) from None


def write(imatrix: Imatrix, path: Path) -> None:
    """Write llama.cpp's GGUF file, entries by name as llama-imatrix sorts them. A count over 2²⁴ loses its last digits.

    Raises:
        DataError: the matrix is empty, or an entry holds what no sum of squares is.
        MachineError: the file cannot be written.
    """
    if not imatrix.sums:
        raise DataError("an importance matrix without entries", code="LK0611", where=str(path))
    writer = _Writer(None, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(imatrix.datasets) or ["unknown"])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
    for name in sorted(imatrix.sums):
        sums = np.asarray(imatrix.sums[name], np.float32)
        _check_sums(sums, name, where=str(path))
        writer.add_tensor(name + _SUMS, sums)
        writer.add_tensor(name + _COUNTS, np.array([imatrix.counts[name]], np.float32))
    draft = path.with_name(path.name + ".part")
    try:
        try:
            writer.write_header_to_file(draft)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MachineError(f"cannot write the importance matrix: {error}", code="LK0903", where=str(path)) from None


class _Writer(gguf.GGUFWriter):
    """Names no architecture: llama.cpp's own files have none."""

    def add_architecture(self) -> None:
        pass


def _read_gguf(stream: BinaryIO, path: Path) -> Imatrix:
    file = container.open_file(path)
    metadata, where = file.metadata, str(path)
    if metadata.get("general.type") != "imatrix":
        raise DataError("this GGUF file is no importance matrix", code="LK0611", where=where, next=_HOW)
    values: dict[str, Array] = {}
    for tensor in file.tensors:
        if tensor.type is not GGMLQuantizationType.F32:
            raise DataError(f"{tensor.name} is {tensor.type.name}, not F32", code="LK0611", where=where)
        stream.seek(tensor.offset)
        values[tensor.name] = np.frombuffer(stream.read(tensor.size), "<f4")
    sums = {name.removesuffix(_SUMS): value for name, value in values.items() if name.endswith(_SUMS)}
    counts = {name.removesuffix(_COUNTS): value for name, value in values.items() if name.endswith(_COUNTS)}
    if not sums or sums.keys() != counts.keys():
        odd = sorted(sums.keys() ^ counts.keys())[:1] or ["it"]
        raise DataError(
            f"this importance matrix is damaged: {odd[0]} lacks its sums or its counts", code="LK0611", where=where, next=_HOW
        )
    for name, value in sums.items():
        _check_sums(value, name, where=where)
    rows = {name: _rows(name, count, where=where) for name, count in counts.items()}
    chunks, chunk_size = (_number(metadata, key) for key in (gguf.Keys.IMatrix.CHUNK_COUNT, gguf.Keys.IMatrix.CHUNK_SIZE))
    return Imatrix(sums, rows, _texts(metadata.get(gguf.Keys.IMatrix.DATASETS)), chunks, chunk_size)


def _rows(name: str, counts: Array, *, where: str) -> int:
    if len(counts) != 1:
        raise DataError(
            f"{name} has {len(counts)} counts: the importance matrix of a mixture of experts, which no supported model is",
            code="LK0611",
            where=where,
        )
    count = float(counts[0])
    if not 0 <= count <= _LARGEST_COUNT:  # NaN is neither
        raise DataError(
            f"this importance matrix is damaged: {name} has the count {count}", code="LK0611", where=where, next=_HOW
        )
    return int(count + 0.5)  # as C's lround


def _check_sums(sums: Array, name: str, *, where: str) -> None:
    if not (sums.ndim == 1 and len(sums) and bool(np.isfinite(sums).all()) and float(sums.min()) >= 0):
        raise DataError(f"the importance of {name} is not finite or below zero", code="LK0611", where=where, next=_HOW)


def _number(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    return value if type(value) is int and 0 <= value < 2**32 else 0


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, Sequence) else ()


class _Legacy:
    """The older file, integers as int32 and little-endian: entries (name, calls, values), then perhaps calls and a data set."""

    def __init__(self, stream: BinaryIO, path: Path, size: int) -> None:
        self._stream = stream
        self._where = str(path)
        self._left = size

    def read(self) -> Imatrix:
        sums: dict[str, Array] = {}
        counts: dict[str, int] = {}
        for _ in range(self._number(at_least=1)):
            name = self._text(self._number(at_least=1, at_most=_MAX_NAME_BYTES))
            if name in sums:
                raise self._damage(f"{name} stands there twice")
            calls = self._number(at_least=0)
            width = self._number(at_least=1)
            values = np.frombuffer(self._take(4 * width), "<f4")
            _check_sums(values, name, where=self._where)
            # The values are means times the calls; without calls llama-quantize takes them as they are.
            sums[name], counts[name] = values, calls or 1
        chunks = self._number(at_least=0) if self._left else 0
        dataset = self._text(self._number(at_least=0)) if self._left else ""
        return Imatrix(sums, counts, (dataset,) if dataset else (), chunks, 0)

    def _number(self, *, at_least: int, at_most: int = _MAX_BYTES) -> int:
        value: int = struct.unpack("<i", self._take(4))[0]
        if not at_least <= value <= at_most:
            raise self._damage(f"it says {value} where {at_least} to {at_most} would do")
        return value

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damage("a text is not UTF-8") from None

    def _take(self, length: int) -> bytes:
        if length > self._left:
            raise self._damage("it ends too early")
        self._left -= length
        return self._stream.read(length)

    def _damage(self, what: str) -> DataError:
        return DataError(f"this is no importance matrix, or a damaged one: {what}", code="LK0611", where=self._where, next=_HOW)
