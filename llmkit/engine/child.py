"""Runs one function in a process of its own. Knows processes and pipes; nothing of what the function does.

A fresh process makes peak memory a property of the work rather than of what ran before it, gives all memory back, and
turns a crash in native code into an error.
"""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from llmkit import errors, progress
from llmkit.errors import LlmkitError, MachineError

PRELOAD = ["llmkit.engine.measure"]
Result = TypeVar("Result")


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
    context = multiprocessing.get_context("forkserver")
    # The server imports torch once; each child is forked from it before any thread has started.
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, function, args), daemon=True)
    with progress.track(title, total=total) as bar:
        child.start()
        theirs.close()
        try:
            while True:
                kind, *rest = ours.recv()
                if kind == "advance":
                    bar.advance(*rest)
                elif kind == "note":
                    progress.note(*rest)
                elif kind == "error":
                    raise rest[0]
                else:
                    finished: Result = rest[0]
                    return finished
        except EOFError:
            child.join()
            raise MachineError(
                f"the process that was {title} {_died(child.exitcode)}", next="free some memory and run again"
            ) from None
        finally:
            child.join(5)
            if child.is_alive():
                child.kill()
            ours.close()


class _Relay:
    """The child's end of the bar and of the notes."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def advance(self, count: int = 1, text: str = "") -> None:
        self._pipe.send(("advance", count, text))

    def open(self, title: str, total: int | None) -> progress.Bar:
        return self

    def close(self, bar: progress.Bar) -> None:
        pass

    def note(self, text: str) -> None:
        self._pipe.send(("note", text))


def _serve(pipe: Connection, function: Callable[..., object], args: tuple[object, ...]) -> None:
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    relay = _Relay(pipe)
    progress.calm_libraries()
    progress.install(relay)
    try:
        pipe.send(("done", function(*args, relay)))
    except LlmkitError as error:
        pipe.send(("error", error))
    except Exception as error:  # noqa: BLE001 - a boundary as cli.py is: what is raised here must reach the parent
        pipe.send(("error", errors.told(error)))


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
