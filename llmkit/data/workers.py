"""Who sifts the pieces of the data: this process, a pool of processes, or a Ray cluster. Knows pieces; nothing of rules.

Pieces are cut by bytes, always the same way, and their batches come back in order: how many sift them changes nothing.
"""

import fcntl
import multiprocessing
import pickle
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.data import reading
from llmkit.data.sieve import Batch, Spec, Task, sift
from llmkit.errors import LlmkitError, MachineError, told

PIECE_BYTES = 2**19
_AHEAD = 3  # pieces that a helper has before it
_LEAD = 16  # pieces for each worker that may be sifted before their turn comes
_PIPE_BYTES = 2**20  # as much as Linux lets anyone have
Sifted = tuple[Task, Batch]


class Source(NamedTuple):
    """One file of JSON lines: its name for the user, its format where that is known, lines known to be unreadable.

    `stratum` names it for the split, and stays what it is whatever other files come.
    """

    label: str
    path: Path
    snapshot: reading.Snapshot
    prefer: str | None = None
    strict: bool = False
    stratum: str = ""
    bad: Mapping[int, tuple[str, str]] = {}


def batches(sources: Sequence[Source], spec: Spec, *, engine: str, workers: int) -> Iterator[Sifted]:
    """Every piece of every source with its batch, in order. `engine`: "local" or "ray".

    Raises:
        MachineError: a worker process was killed, or Ray failed.
        DataError, UsageError: as `sift`.
    """
    if engine == "ray":
        return _on_ray(sources, spec, workers)
    return _in_pool(sources, spec, workers) if workers > 1 else _here(sources, spec)


def _here(sources: Sequence[Source], spec: Spec) -> Iterator[Sifted]:
    for source in sources:
        line = 1
        for start, end in _ranges(source):
            task = _task(source, start, end, line, source.bad)
            batch = sift(task, spec)
            line += batch.lines
            yield task, batch


def _in_pool(sources: Sequence[Source], spec: Spec, workers: int) -> Iterator[Sifted]:
    """This process is one of the workers: it takes a piece of its own whenever the next batch in order is not there yet."""
    helpers = [_Helper(spec) for _ in range(workers - 1)]
    tasks = enumerate(_numbered(sources))
    given: list[Task] = []
    batches: dict[int, Batch] = {}
    turn = 0
    try:
        while True:
            for helper in helpers:
                batches.update(helper.finished())
                for number, task in islice(tasks, _AHEAD - len(helper.busy)):
                    given.append(task)
                    if task.bad:
                        # What it says of bad lines may fill the pipe: both would wait for one another.
                        batches[number] = sift(task, spec)
                    else:
                        helper.give(number, task)
            while turn in batches:
                yield given[turn], batches.pop(turn)
                turn += 1
            own = next(tasks, None) if len(given) - turn < _LEAD * workers else None
            if own is not None:
                given.append(own[1])
                batches[own[0]] = sift(own[1], spec)
            elif turn == len(given):
                return
            elif turn not in batches:
                wait([helper.results for helper in helpers if helper.busy])
    finally:
        for helper in helpers:
            helper.stop()


class _Helper:
    """A process that sifts what it is given. Its pipe holds a batch or two, so that it goes on while this process is busy."""

    def __init__(self, spec: Spec) -> None:
        # Forked where that is sound, for a fresh interpreter takes as long to start as a hundred megabytes to sift.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        tasks, self._tasks = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        if sys.platform == "linux":
            with suppress(OSError):  # more than this machine allows a pipe
                fcntl.fcntl(results.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.busy: deque[int] = deque()
        self._process = context.Process(target=_help, args=(tasks, results, self._tasks, self.results, spec), daemon=True)
        self._process.start()
        tasks.close()
        results.close()

    def give(self, number: int, task: Task) -> None:
        self.busy.append(number)
        with suppress(BrokenPipeError):  # it has died: `finished` tells
            self._tasks.send(task)

    def finished(self) -> Iterator[tuple[int, Batch]]:
        """What is ready, in the order it was given.

        Raises:
            LlmkitError: what `sift` raised there.
            MachineError: the process was killed.
        """
        while self.busy and self.results.poll():
            try:
                batch = self.results.recv()
            except (EOFError, ConnectionResetError):
                raise MachineError(
                    "a worker process was killed, most likely for want of memory",
                    code="LK0905",
                    next="use fewer --workers, or free memory",
                ) from None
            if isinstance(batch, LlmkitError):
                raise batch
            yield self.busy.popleft(), batch

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._tasks.close()
        self.results.close()


def _help(tasks: Connection, results: Connection, *rest: Any) -> None:
    """What a helper does until there is no one to ask it."""
    *ends, spec = rest
    for end in ends:
        end.close()  # the other process's, which a fork opened here too
    with suppress(BrokenPipeError, KeyboardInterrupt):
        while True:
            try:
                batch: Batch | LlmkitError = sift(tasks.recv(), spec)
            except (EOFError, KeyboardInterrupt):
                return
            except LlmkitError as error:
                batch = error
            except Exception as error:  # noqa: BLE001 - a boundary: what is raised here is told there
                batch = told(error)
            results.send(batch)


def _on_ray(sources: Sequence[Source], spec: Spec, workers: int) -> Iterator[Sifted]:
    """Through Ray Data: a row a piece. The files must lie where every node sees them."""
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    tasks = list(_numbered(sources))
    rows = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    sifted = rows.map(partial(_sift_row, spec=spec))
    try:
        for task, row in zip(tasks, sifted.iter_rows(), strict=True):
            batch = pickle.loads(row["batch"])  # noqa: S301 (made by _sift_row)
            if isinstance(batch, LlmkitError):
                raise batch
            yield task, batch
    except ray.exceptions.RayError as error:
        what = f"Ray failed: {str(error).strip().splitlines()[-1][:200]}"
        raise MachineError(what, code="LK0905", next="see Ray's own log, or clean with engine: local") from None


def _sift_row(row: Mapping[str, bytes], *, spec: Spec) -> dict[str, bytes]:
    # An error of ours travels as a value: Ray would wrap it in one of its own.
    try:
        batch: Batch | LlmkitError = sift(pickle.loads(row["task"]), spec)  # noqa: S301 (made by _on_ray)
    except LlmkitError as error:
        batch = error
    return {"batch": pickle.dumps(batch)}


def _numbered(sources: Sequence[Source]) -> Iterator[Task]:
    """All pieces with the number of their first line, which takes counting the lines before; each knows its own bad ones."""
    for source in sources:
        line = 1
        for start, end in _ranges(source):
            after = line + reading.count_lines(source.path, start, end)
            bad = {number: source.bad[number] for number in range(line, after) if number in source.bad} if source.bad else {}
            yield _task(source, start, end, line, bad)
            line = after


def _ranges(source: Source) -> list[tuple[int, int]]:
    size = source.snapshot.size
    return [(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES)]


def _task(source: Source, start: int, end: int, line: int, bad: Mapping[int, tuple[str, str]]) -> Task:
    return Task(source.label, source.path, start, end, line, source.prefer, source.strict, bad, source.stratum)
