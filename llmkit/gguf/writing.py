"""Tensors from safetensors files into GGUF files, a run of rows at a time, in several processes. Knows bytes and places only.

A file's header says where each tensor lies, so its parts are written where they belong, in any order, by whoever reads them.
A piece is read once, whatever the number of files it goes to; memory holds a few pieces for each process, never the model.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from llmkit import progress
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf.encode import encode
from llmkit.gguf.weights import FLOATS, Stored

Array = np.ndarray[Any, Any]
PIECE_ELEMENTS = 1 << 21  # what a process is told at once
_BLOCK_ELEMENTS = 1 << 17
SMALL_ELEMENTS = 1 << 24  # fewer are written sooner than other processes start
_MOST_OPEN = 64  # files of a process
_WAITING = 4  # pieces for each process that are told ahead
LARGEST_F16 = 65504.0
_AS_STORED = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16}


@dataclass(frozen=True)
class Target:
    """Where a tensor goes in one file: its first byte there, its type, and the importance of its columns, float32 [width]."""

    path: Path
    offset: int
    type: GGMLQuantizationType
    importance: Array | None = None


@dataclass(frozen=True)
class Source:
    """A tensor to write. `order`: the stored row for each written one, int [rows]; None: as they are."""

    name: str
    stored: Stored
    order: Array | None
    targets: tuple[Target, ...]

    @property
    def width(self) -> int:
        return self.stored.shape[-1]

    @property
    def rows(self) -> int:
        return int(np.prod(self.stored.shape[:-1], dtype=np.int64))


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `last` (exclusive) of a tensor, as they are written."""

    source: Source
    first: int
    last: int


class Files:
    """File descriptors by path, the last few that were asked for."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, int], int] = {}

    def __call__(self, path: Path, flags: int) -> int:
        if (path, flags) not in self._open:
            if len(self._open) == _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[path, flags] = os.open(path, flags | os.O_CLOEXEC)
        return self._open[path, flags]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


_FILES = Files()  # a pool's process keeps them open until it ends


def write(sources: Sequence[Source], *, workers: int, title: str) -> None:
    """Fill the files of every target, which exist and have their size.

    Raises:
        DataError: a weight is not finite, or a file became shorter.
        UsageError: a weight is too large for f16.
        MachineError: the disk is full, or a process was killed.
    """
    pieces = [piece for source in sources for piece in _cut(source)]
    elements = sum(source.rows * source.width for source in sources)
    workers = min(workers, len(pieces))
    with progress.track(title, total=len(pieces)) as bar:
        done = _in_this_process(pieces) if workers < 2 or elements < SMALL_ELEMENTS else _in_pool(pieces, workers)
        for _ in done:
            bar.advance()


def read_rows(stored: Stored, first: int, last: int, files: Files) -> Array:
    """Rows of a stored tensor as they lie in its file (bf16 as uint16), shape [last - first, width].

    Raises:
        DataError: the file ends before them.
    """
    kind = np.dtype(FLOATS[stored.dtype])
    width = stored.shape[-1]
    size, start = (last - first) * width * kind.itemsize, stored.offset + first * width * kind.itemsize
    read = os.pread(files(stored.path, os.O_RDONLY), size, start)
    if len(read) != size:
        raise DataError("the weights became shorter while they were read", code="LK0208", where=str(stored.path))
    return np.frombuffer(read, kind).reshape(last - first, width)


def read_whole(stored: Stored) -> Array:
    """A whole tensor in float32, in its own shape. Raises DataError as `read_rows`."""
    with contextlib.closing(Files()) as files:
        rows = read_rows(stored, 0, int(np.prod(stored.shape[:-1], dtype=np.int64)), files)
    return as_float(rows, stored.dtype).reshape(stored.shape)


def as_float(rows: Array, dtype: str) -> Array:
    """What `read_rows` gave, in float32."""
    if dtype == "BF16":
        return np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
    return rows.astype(np.float32, copy=False)


def check(rows: Array, name: str, *, f16: bool) -> None:
    """Raises DataError where a value of float32 `rows` is not finite, UsageError where `f16` cannot hold it."""
    largest = max(float(rows.max()), -float(rows.min()))  # NaN in, NaN out
    if not np.isfinite(largest):
        raise DataError(
            f"tensor {name} holds values that are not finite", code="LK0319", next="the model is broken: train it again"
        )
    if f16 and largest > LARGEST_F16:
        raise UsageError(
            f"tensor {name} holds {largest:.3g}, too large for f16", code="LK0613", next="export bf16 in its place"
        )


def write_piece(piece: Piece, files: Files = _FILES) -> None:
    """Read, check, encode for every target and write one piece."""
    source = piece.source
    f16 = any(target.type is GGMLQuantizationType.F16 for target in source.targets)
    for first, stored in blocks(piece, files):
        values = as_float(stored, source.stored.dtype)
        check(values, source.name, f16=f16)
        for target in source.targets:
            same = target.type is _AS_STORED[source.stored.dtype]
            encoded = stored if same else encode(values, target.type, target.importance)
            start = target.offset + first * row_size(source.width, target.type)
            _write_at(files(target.path, os.O_WRONLY), encoded, start)


def blocks(piece: Piece, files: Files) -> Iterator[tuple[int, Array]]:
    """The piece a few rows at a time, so that all that is done to them happens in the processor's cache."""
    source, order = piece.source, piece.source.order
    step = max(1, _BLOCK_ELEMENTS // source.width)
    starts = range(piece.first, piece.last, step)
    if order is None:
        for first in starts:
            yield first, read_rows(source.stored, first, min(first + step, piece.last), files)
        return
    # Rows that stand together come from all over a head.
    wanted = order[piece.first : piece.last]
    lowest = int(wanted.min())
    everything = read_rows(source.stored, lowest, int(wanted.max()) + 1, files)
    for first in starts:
        yield first, everything[order[first : min(first + step, piece.last)] - lowest]


def row_size(width: int, kind: GGMLQuantizationType) -> int:
    """Bytes of one row."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return width // block * size


def _cut(source: Source) -> Iterator[Piece]:
    rows = max(1, PIECE_ELEMENTS // source.width)
    for first in range(0, source.rows, rows):
        yield Piece(source, first, min(first + rows, source.rows))


def _write_at(file: int, encoded: Array, offset: int) -> None:
    left = np.ascontiguousarray(encoded).data.cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _in_this_process(pieces: Sequence[Piece]) -> Iterator[None]:
    with contextlib.closing(Files()) as files:
        for piece in pieces:
            write_piece(piece, files)
            yield


def _in_pool(pieces: Sequence[Piece], workers: int) -> Iterator[None]:
    """A pool that is told a few pieces ahead: the first failure ends the work within moments."""
    left = iter(pieces)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        waiting = {pool.submit(write_piece, piece) for piece in islice(left, workers * _WAITING)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(write_piece, piece) for piece in islice(left, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise MachineError(
            "a process that wrote the file was killed", code="LK0905", next="free memory and run it again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells no one, and its pool would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
