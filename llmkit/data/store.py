"""Dialogues on disk, found by their place: what has been sifted and not yet dealt to a side. Knows canonical lines."""

import errno
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from llmkit.data import dedup
from llmkit.data.near import Numbers, shingle_set
from llmkit.data.record import Record

_SETS_KEPT = 4096  # shingle sets at hand for comparing, some 3 KB each
_COPY_BYTES = 2**24
_CANNOT_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}  # not here, not between these files


class Store:
    """A file of canonical lines; place n is the n-th of them. `keys` are their ids as numbers."""

    def __init__(self, path: Path, lengths: Sequence[NDArray[np.uint32]], keys: Sequence[NDArray[np.uint64]]) -> None:
        self.path = path
        self.ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)
        self.keys = np.concatenate([np.zeros(0, np.uint64), *keys])
        self._file = os.open(path, os.O_RDONLY)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self.keys)

    def id(self, place: int) -> str:
        return f"{int(self.keys[place]):016x}"

    def line(self, place: int) -> bytes:
        """With its line feed."""
        start, end = int(self.ends[place]), int(self.ends[place + 1])
        return os.pread(self._file, end - start, start)

    def record(self, place: int) -> Record:
        return Record.from_json(self.line(place))

    def texts(self, view: str, places: Sequence[int]) -> list[str]:
        """What a view holds of some records."""
        return [dedup.view(self.record(place), view) for place in places]

    def shingles(self, view: str) -> "_Shingles":
        """Place → the shingles of its view; those asked for last are kept."""
        return _Shingles(self, view)

    def copy(self, places: NDArray[np.int64], out: Path) -> None:
        """The lines of `places`, in their order, into a file: runs of neighbours at once, by the kernel where it can."""
        with out.open("wb") as stream:
            edges = np.flatnonzero(np.diff(places) != 1) + 1
            for run in np.split(places, edges) if len(places) else ():
                self._copy_bytes(int(self.ends[run[0]]), int(self.ends[run[-1] + 1]), stream.fileno())

    def _copy_bytes(self, start: int, end: int, out: int) -> None:
        copy = getattr(os, "copy_file_range", None)  # Linux: a third of the time
        while start < end:
            size = min(_COPY_BYTES, end - start)
            try:
                done = copy(self._file, out, size, start) if copy else 0
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                copy, done = None, 0
            start += done or os.write(out, os.pread(self._file, size, start))


class _Shingles:
    def __init__(self, store: Store, view: str) -> None:
        self._found = lru_cache(maxsize=_SETS_KEPT)(lambda place: shingle_set(dedup.view(store.record(place), view)))

    def __call__(self, place: int) -> Numbers:
        return self._found(place)
