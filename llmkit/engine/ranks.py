"""Runs one function in several processes that train together. Knows process groups; nothing of what the function does.

The processes are our own children, or those that an outside launcher (torchrun, accelerate launch) has started: there
the first one runs the command, inside `leading`, and calls `run`; the others `follow`, and do nothing but what it hands
them. The launcher's nodes must see the same files under the same paths.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from llmkit import errors, progress
from llmkit.engine import child
from llmkit.engine.child import PeerLostError
from llmkit.errors import LlmkitError, MachineError

Result = TypeVar("Result")
STEP_PATIENCE = timedelta(hours=2)  # within a job: for the first process to save or sample while the others wait
JOB_PATIENCE = timedelta(days=30)  # between jobs: for the first process to clean data, evaluate, export
WORD_PATIENCE = timedelta(seconds=5)  # for a word that must be there already
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport", "NCCL error"),
    *("failed to recv", "Timed out waiting"),
)


def run(function: Callable[..., Result], *args: object, processes: int = 1, title: str, total: int | None = None) -> Result:
    """`function(*args, bar)` in each of `processes` processes of this machine, as one process group; the first one's result.

    Only the first one's bar and notes are shown. A process alone is a plain child without a group. Inside `leading` it
    runs in the launcher's processes instead, and `processes` is not looked at.

    Args:
        function: importable by name; takes a `progress.Bar` last.
        args: plain data, as JSON has it.
        processes: how many.
        title, total: for the bar.

    Raises:
        LlmkitError: whatever the function raised in one of them, once.
        MachineError: one of them died; the others were ended.
    """
    if _launch is not None:
        return _lead(_launch, function, args, title=title, total=total)
    if processes == 1:
        return child.run(function, *args, title=title, total=total)
    with tempfile.TemporaryDirectory(prefix="llmkit-") as folder:
        # A file to meet by: a port could be taken by another program before they do.
        meeting = str(Path(folder) / "meeting")
        jobs = [(_take_part, (number, processes, meeting, function, args)) for number in range(processes)]
        result: Result = child.run_all(jobs, title=title, total=total)
        return result


@contextmanager
def leading() -> Iterator[None]:
    """In an outside launcher's first process: within it `run` works in all of the launcher's processes.

    However it ends, they end too, and learn the exit code.

    Raises:
        MachineError: the others do not come, or this machine has fewer GPUs than processes.
    """
    global _launch  # noqa: PLW0603 - one process has one launcher
    _launch = _join()
    code = 3
    try:
        yield
        code = 0
    except LlmkitError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        ended, _launch = _launch, None
        _dismiss(ended, code)


def follow() -> int:
    """In every other process of an outside launcher: do what the first one hands out, until it ends; its exit code.

    A job that fails here ends this process with its own code, and the first one tells of it.
    """
    launch = _join()
    code = ""
    try:
        while (job := _heard(launch)) is not None:
            _named(job["function"])(*job["args"], _Silence())
            distributed.barrier(launch.jobs)
    except Exception as error:  # noqa: BLE001 - a boundary as cli.py is: what is raised here must reach the first process
        if not _is_loss(error):
            code = str(_confess(launch, error if isinstance(error, LlmkitError) else errors.told(error)))
    code = code or _said(launch, "llmkit/exit")
    with suppress(RuntimeError):
        launch.store.set(f"llmkit/left/{launch.rank}", "")
    return int(code or MachineError.exit_code)


@dataclass
class _Launch:
    """What an outside launcher's processes share: a group to hand out jobs by, a store to leave word in.

    `busy`: they are at a job, and cannot hear of another.
    """

    jobs: Any
    store: Any
    rank: int
    busy: bool = False


_launch: _Launch | None = None


class _Silence:
    def advance(self, count: int = 1, text: str = "") -> None:
        pass


def _take_part(
    number: int, processes: int, meeting: str, function: Callable[..., Any], args: Sequence[object], bar: progress.Bar
) -> Any:
    """One of our own processes: join the others, do the work together, part."""
    here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if hasattr(os, "sched_getaffinity") else 1
    os.environ.update({name: str(value) for name, value in {**here, "OMP_NUM_THREADS": threads}.items()})
    # All are on this machine: no one beyond it should be able to talk to them.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(threads)
    _take_device(number)
    with _losses_told():
        _form_group(init_method=f"file://{meeting}", rank=number, world_size=processes)
        result = function(*args, bar)
        distributed.barrier()
        distributed.destroy_process_group()
    return result if number == 0 else None


def _join() -> _Launch:
    """Form the group that the launcher's environment describes."""
    child.forget(child.SETTINGS)
    _take_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _losses_told():
        store, rank, world = next(rendezvous("env://"))
        _form_group(store=store, rank=rank, world_size=world)
        return _Launch(distributed.new_group(backend="gloo", timeout=JOB_PATIENCE), store, rank)


def _form_group(**where: Any) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=STEP_PATIENCE, **where)


def _take_device(local_rank: int) -> None:
    if not torch.cuda.is_available():
        return
    if local_rank >= torch.cuda.device_count():
        raise MachineError(
            f"{local_rank + 1} processes need as many GPUs on this machine; it has {torch.cuda.device_count()}",
            code="LK0410",
            next="lower finetune.processes",
        )
    torch.cuda.set_device(local_rank)


def _lead(launch: _Launch, function: Callable[..., Result], args: Sequence[object], *, title: str, total: int | None) -> Result:
    job = {"function": f"{function.__module__}:{function.__qualname__}", "args": list(args)}
    with progress.track(title, total=total) as bar:
        try:
            with _losses_told(), _ended_by_launcher():
                _hand_out(launch, job)
                launch.busy = True
                result = function(*args, bar)
                distributed.barrier(launch.jobs)
                launch.busy = False
                return result
        except PeerLostError as loss:
            raise _confessed(launch) or loss from None


@contextmanager
def _ended_by_launcher() -> Iterator[None]:
    """A launcher ends all processes once one has failed: leave this one the time to tell why."""

    def told(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; it kills in half a minute
        raise PeerLostError("the launcher has ended the training", code="LK0411", next="look at its log, and run again")

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


def _dismiss(launch: _Launch, code: int) -> None:
    """Send the others home with the exit code."""
    others = range(1, distributed.get_world_size())
    with suppress(RuntimeError):  # they may be gone
        launch.store.set("llmkit/exit", str(code))
        if not launch.busy:
            _hand_out(launch, None)
        distributed.destroy_process_group()  # those in the middle of a job end it, as they lose this process
    # This process may hold the store: wait until all have read it.
    _said(launch, *(f"llmkit/left/{rank}" for rank in others))


def _hand_out(launch: _Launch, job: dict[str, Any] | None) -> None:
    text = torch.frombuffer(bytearray(json.dumps(job).encode()), dtype=torch.uint8)
    distributed.broadcast(torch.tensor([len(text)]), 0, group=launch.jobs)
    distributed.broadcast(text, 0, group=launch.jobs)


def _heard(launch: _Launch) -> dict[str, Any] | None:
    size = torch.zeros(1, dtype=torch.long)
    distributed.broadcast(size, 0, group=launch.jobs)
    text: Tensor = torch.empty(int(size), dtype=torch.uint8)
    distributed.broadcast(text, 0, group=launch.jobs)
    job: dict[str, Any] | None = json.loads(bytes(text.tolist()))
    return job


def _named(name: str) -> Callable[..., Any]:
    """A function of this package by `module:name`; of no other, whoever asks."""
    module, _, attribute = name.partition(":")
    if not module.startswith("llmkit."):
        raise LlmkitError(f"a job that is not llmkit's: {name}", code="LK0411")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def _confess(launch: _Launch, error: LlmkitError) -> int:
    """Leave word of what failed here, before this process ends and the launcher ends all; its exit code."""
    word = {"kind": type(error).__name__, "what": error.what, "code": error.code, "where": error.where, "next": error.next}
    with suppress(RuntimeError):
        launch.store.set("llmkit/failure", json.dumps(word))
    return error.exit_code


def _confessed(launch: _Launch) -> LlmkitError | None:
    found = _said(launch, "llmkit/failure")
    if not found:
        return None
    word = json.loads(found)
    kind = getattr(errors, word.pop("kind"), MachineError)
    error: LlmkitError = kind(word.pop("what"), **word)
    return error


def _said(launch: _Launch, *keys: str) -> str:
    """The last of `keys` in the store, once all are there; nothing where that takes too long."""
    try:
        launch.store.wait(list(keys), WORD_PATIENCE)
        return bytes(launch.store.get(keys[-1])).decode() if keys else ""
    except RuntimeError:  # all of torch.distributed's
        return ""


@contextmanager
def _losses_told() -> Iterator[None]:
    """Turn the loss of a peer, which each backend words in its own way, into `PeerLostError`."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise PeerLostError(
            "another process of the training is gone, or out of reach",
            code="LK0411",
            next="look at its machine's log, and run again",
        ) from error


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, (PeerLostError, distributed.DistNetworkError, distributed.DistBackendError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)
