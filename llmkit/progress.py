"""How long work tells that it moves. Knows nothing of terminals: `cli.py` installs what draws.

A step calls `track("finetune", total=140)` and `note("…")`; with nothing installed both are silent, so a test
needs no set-up.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    def advance(self, count: int = 1, text: str = "") -> None: ...


class Sink(Protocol):
    def open(self, title: str, total: int | None) -> Bar: ...
    def close(self, bar: Bar) -> None: ...
    def note(self, text: str) -> None: ...


class _SilentBar:
    def advance(self, count: int = 1, text: str = "") -> None:
        pass


class _Silent:
    def open(self, title: str, total: int | None) -> Bar:
        return _SilentBar()

    def close(self, bar: Bar) -> None:
        pass

    def note(self, text: str) -> None:
        pass


_sink: Sink = _Silent()

# For OpenMP, read once when it is loaded. Threads that spin long at a barrier take a busy core from those they wait for:
# with one core busy a training step took 40 s in place of 0.7. A short spin costs nothing on quiet cores.
CALM_THREADS = {"GOMP_SPINCOUNT": "10000"}


def calm_libraries() -> None:
    """For a whole process, before it imports them: no library talks over our progress, and threads do not spin long."""
    os.environ.update({"TQDM_DISABLE": "1", **CALM_THREADS})
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def install(sink: Sink) -> None:
    """Send all later progress to `sink`."""
    global _sink  # noqa: PLW0603 - one process has one terminal
    _sink = sink


@contextmanager
def track(title: str, *, total: int | None = None) -> Iterator[Bar]:
    """A bar over `total` units (None: unknown); call `advance()` on it, with a short text if there is news."""
    bar = _sink.open(title, total)
    try:
        yield bar
    finally:
        _sink.close(bar)


def note(text: str) -> None:
    """One line of talk: a warning, a licence, a decision."""
    _sink.note(text)
