"""Who sifts the pieces of the data: this process, a pool of processes, or a Ray cluster. Knows pieces; nothing of rules.

Pieces are cut by bytes, always the same way, and their batches come back in order: how many sift them changes nothing.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.data import reading
from llmkit.data.sieve import Batch, Spec, Task, sift
from llmkit.errors import MachineError

PIECE_BYTES = 2**20
Sifted = tuple[Task, Batch]


class Source(NamedTuple):
    """One file of JSON lines: its name for the user, its format where that is known, lines known to be unreadable."""

    label: str
    path: Path
    snapshot: reading.Snapshot
    prefer: str | None = None
    strict: bool = False
    bad: Mapping[int, tuple[str, str]] = {}


def batches(sources: Sequence[Source], spec: Spec, *, engine: str, workers: int) -> Iterator[Sifted]:
    """Every piece of every source with its batch, in order. `engine`: "local" or "ray".

    Raises:
        MachineError: the Ray extra is missing, or a worker process was killed.
        DataError, UsageError: as `sift`.
    """
    if engine == "ray":
        return _on_ray(sources, spec, workers)
    return _in_pool(sources, spec, workers) if workers > 1 else _here(sources, spec)


def _here(sources: Sequence[Source], spec: Spec) -> Iterator[Sifted]:
    for source in sources:
        line = 1
        for start, end in _ranges(source):
            task = _task(source, start, end, line)
            batch = sift(task, spec)
            line += batch.lines
            yield task, batch


def _in_pool(sources: Sequence[Source], spec: Spec, workers: int) -> Iterator[Sifted]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Not forked: this process may hold threads by now.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: deque[Any] = deque()
        for task in _numbered(sources, partial(pool.map, chunksize=8)):
            waiting.append((task, pool.submit(sift, task, spec)))
            if len(waiting) > workers + 2:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    except BrokenProcessPool:
        raise MachineError(
            "a worker process was killed, most likely for want of memory", next="use fewer --workers, or free memory"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(sources: Sequence[Source], spec: Spec, workers: int) -> Iterator[Sifted]:
    """Through Ray Data: a row a piece. The files must lie where every node sees them."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise MachineError("engine: ray needs an extra", where="clean.engine", next="pip install 'llmkit[ray]'") from None
    if not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    tasks = list(_numbered(sources, map))
    rows = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    sifted = rows.map(partial(_sift_row, spec=spec))
    for task, row in zip(tasks, sifted.iter_rows(), strict=True):
        yield task, pickle.loads(row["batch"])  # noqa: S301 (made by _sift_row)


def _sift_row(row: Mapping[str, bytes], *, spec: Spec) -> dict[str, bytes]:
    return {"batch": pickle.dumps(sift(pickle.loads(row["task"]), spec))}  # noqa: S301 (made by _on_ray)


def _numbered(sources: Sequence[Source], mapped: Callable[..., Iterator[int]]) -> Iterator[Task]:
    """All pieces with the number of their first line, which takes counting the lines before."""
    pieces = [(source, start, end) for source in sources for start, end in _ranges(source)]
    columns = [source.path for source, _, _ in pieces], [start for _, start, _ in pieces], [end for _, _, end in pieces]
    counts = mapped(reading.count_lines, *columns)
    line, before = 1, None
    for (source, start, end), count in zip(pieces, counts, strict=True):
        line = line if source is before else 1
        yield _task(source, start, end, line)
        line, before = line + count, source


def _ranges(source: Source) -> list[tuple[int, int]]:
    size = source.snapshot.size
    return [(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]


def _task(source: Source, start: int, end: int, line: int) -> Task:
    return Task(source.label, source.path, start, end, line, source.prefer, source.strict, source.bad)
