"""Runs functions in processes of their own. Knows processes and pipes; nothing of what the functions do.

A fresh process makes peak memory a property of the work rather than of what ran before it, gives all memory back, and
turns a crash in native code into an error.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from threading import RLock, Thread, current_thread, main_thread
from typing import Any, TypeVar

import tqdm  # type: ignore[import-untyped]

from llmkit import errors, progress
from llmkit.errors import LlmkitError, MachineError

# The last is what transformers puts off until the first model: two seconds, which each child would spend again.
PRELOAD = ["llmkit.engine.measure", "llmkit.engine.retention", "transformers.modeling_utils"]
# An outside launcher's word on who trains with whom is for the process it started, not for that one's children.
LAUNCHER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_")
# What `accelerate launch` adds from its own configuration would change results; the recipe alone decides.
SETTINGS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
PATIENCE_SECONDS = 5.0  # for the others to tell their part, once one has failed
Result = TypeVar("Result")
Job = tuple[Callable[..., Any], Sequence[object]]


class PeerLostError(MachineError):
    """A process lost those it worked with; why is theirs to tell."""


def run(function: Callable[..., Result], *args: object, title: str, total: int | None = None) -> Result:
    """`function(*args, bar)` in a child process.

    Args:
        function: importable by name; takes a `progress.Bar` last.
        args: picklable between our own processes.
        title, total: for the bar.

    Raises:
        LlmkitError: whatever the function raised.
        MachineError: the child died (of lack of memory, or in native code).
    """
    result: Result = run_all([(function, args)], title=title, total=total)
    return result


def run_all(jobs: Sequence[Job], *, title: str, total: int | None = None) -> Any:
    """A child process for each job, all at once, as `run`; the first one's result, and its bar and notes.

    All must end well: where one fails, the others are ended and the likeliest cause is raised.
    """
    context = multiprocessing.get_context("forkserver")
    # The server imports torch once; each child is forked from it before any thread has started.
    context.set_forkserver_preload(PRELOAD)
    _start_server()
    members: list[_Member] = []
    with progress.track(title, total=total) as bar:
        try:
            for function, args in jobs:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, function, args), daemon=True)
                members.append(_Member(ours, process))
                process.start()
                theirs.close()
            return _outcome(_attend(members, bar), members, title)
        finally:
            _end(members)


def _start_server() -> None:
    """Start the server that children are forked from, deaf to Ctrl-C, which goes to the whole group: the parent decides."""
    if current_thread() is not main_thread():  # signals are not its to set
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Member:
    pipe: Connection
    process: ForkServerProcess


def _attend(members: Sequence[_Member], bar: progress.Bar) -> dict[int, tuple[Any, ...]]:
    """The last word of each member, by number, `("died",)` for want of one; those of the slow are missing after a failure."""
    numbers = {member.pipe: number for number, member in enumerate(members)}
    last: dict[int, tuple[Any, ...]] = {}
    until: float | None = None
    with _Display(bar) as display:
        while len(last) < len(members):
            waiting = [pipe for pipe, number in numbers.items() if number not in last]
            ready = connection.wait(waiting, None if until is None else max(0.0, until - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                number, word = numbers[pipe], _receive(pipe)
                if word[0] not in display.shows:
                    last[number] = word
                elif number == 0:
                    display.show(*word)
                if until is None and word[0] in ("error", "died"):
                    until = time.monotonic() + PATIENCE_SECONDS
    return last


class _Display(AbstractContextManager["_Display"]):
    """Shows the first member's progress: on the bar it was given, and on one of its own while it has one open."""

    def __init__(self, bar: progress.Bar) -> None:
        self._given = self._bar = bar
        self._open = ExitStack()
        self.shows: dict[str, Callable[..., None]] = {
            "advance": self._advance,
            "note": progress.note,
            "open": self._begin,
            "close": self._end,
        }

    def show(self, kind: str, *rest: Any) -> None:
        self.shows[kind](*rest)

    def __exit__(self, *_: object) -> None:
        self._end()

    def _advance(self, count: int, text: str) -> None:
        self._bar.advance(count, text)

    def _begin(self, title: str, total: int | None) -> None:
        self._end()
        self._bar = self._open.enter_context(progress.track(title, total=total))

    def _end(self) -> None:
        self._open.close()
        self._bar = self._given


def _receive(pipe: Connection) -> tuple[Any, ...]:
    try:
        word: tuple[Any, ...] = pipe.recv()
        return word
    except (EOFError, OSError):
        return ("died",)


def _outcome(last: Mapping[int, tuple[Any, ...]], members: Sequence[_Member], title: str) -> Any:
    failures = [_failure(number, word, members, title) for number, word in last.items() if word[0] != "done"]
    if failures:
        raise min(failures, key=_doubt)
    return last[0][1]


def _failure(number: int, word: tuple[Any, ...], members: Sequence[_Member], title: str) -> LlmkitError:
    if word[0] == "error":
        error: LlmkitError = word[1]
        return error
    process = members[number].process
    process.join(PATIENCE_SECONDS)
    which = f"process {number} of the {len(members)} that were {title}" if len(members) > 1 else f"the process that was {title}"
    return _DiedError(f"{which} {_how(process.exitcode)}", code="LK0905", next="free some memory and run again")


class _DiedError(MachineError):
    pass


def _doubt(error: LlmkitError) -> int:
    """How likely an error is another's consequence: least for one of ours, most for the loss of a peer."""
    if isinstance(error, PeerLostError):
        return 3
    if type(error) is LlmkitError:  # a bug, or a library's way to say that a peer is lost
        return 2
    return 1 if isinstance(error, _DiedError) else 0


def _end(members: Sequence[_Member]) -> None:
    for member in members:
        member.pipe.close()  # a child that still works sees it and ends
    for member in members:
        if member.process.pid is not None:
            member.process.join(PATIENCE_SECONDS)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()


class _Relay:
    """The child's end of the bar and of the notes."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def advance(self, count: int = 1, text: str = "") -> None:
        self._pipe.send(("advance", count, text))

    def open(self, title: str, total: int | None) -> progress.Bar:
        self._pipe.send(("open", title, total))
        return self

    def close(self, bar: progress.Bar) -> None:
        self._pipe.send(("close",))

    def note(self, text: str) -> None:
        self._pipe.send(("note", text))


def _serve(pipe: Connection, function: Callable[..., object], args: Sequence[object]) -> None:
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    forget((*LAUNCHER, *SETTINGS))
    Thread(target=_leave_with_parent, args=(pipe,), daemon=True).start()
    relay = _Relay(pipe)
    progress.calm_libraries()
    # tqdm's own is one between processes, a semaphore that no one takes down.
    tqdm.tqdm.set_lock(RLock())
    progress.install(relay)
    try:
        pipe.send(("done", function(*args, relay)))
    except LlmkitError as error:
        pipe.send(("error", error))
    except Exception as error:  # noqa: BLE001 - a boundary as cli.py is: what is raised here must reach the parent
        pipe.send(("error", errors.told(error)))


def forget(names: tuple[str, ...]) -> None:
    """Take environment variables away that begin so."""
    for name in [name for name in os.environ if name.startswith(names)]:
        del os.environ[name]


def _leave_with_parent(pipe: Connection) -> None:
    """End this process once the parent's end is closed: it was killed, or needs this no more. It never sends anything."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
