"""A server's life: it listens, loads its model, answers, drains, ends. Knows signals and order; nothing of HTTP.

The address is taken before the model is loaded, so a wrong one costs no minutes and /health can tell `loading`. The first
SIGTERM or SIGINT drains: what was accepted is answered, what comes new gets 503 and when to try again. A second one, or the end
of the time it was given, drops the rest.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import progress
from llmkit.errors import MachineError, UsageError
from llmkit.serve.http import app, listening
from llmkit.serve.http.desk import Desk
from llmkit.serve.http.metrics import Metrics
from llmkit.serve.http.screen import Words
from llmkit.serve.speaker import Speaker

_TICK = 0.05  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Settings:
    """`key`: None asks for none; `name`: "" for the model's own; `queue`: answers that may wait; `max_tokens`: of an answer."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    name: str = ""
    queue: int = 256
    max_tokens: int = 2048
    drain_seconds: float = 300.0
    sensitive: Sequence[Path] = ()


@dataclass(frozen=True)
class Ready:
    """What a server says once it answers. `url`: its API's base, as the clients of OpenAI take it."""

    url: str
    model: str
    runtime: str
    context: int
    parallel: int


@dataclass(frozen=True)
class Served:
    """What a server did. `cut`: requests that were accepted and dropped."""

    metrics: Metrics
    cut: int


class StoppedError(KeyboardInterrupt):
    """The server was told to end while its model was loading. An interrupt, so that no library takes it for its own failure."""


class Stop:
    """Whether to end. Plain flags: a lock that a signal's handler takes may be held by what the signal came into."""

    def __init__(self) -> None:
        self.asked = False
        self.now = False
        self.loading = False

    def ask(self) -> None:
        """End in order; the second time, at once."""
        self.now = self.asked
        self.asked = True


def serve(
    opened: Callable[[], AbstractContextManager[Speaker]], settings: Settings, *, ready: Callable[[Ready], None], stop: Stop
) -> Served:
    """Serve until `stop` says to end. `opened` loads the model; `ready` is called once requests are answered.

    Raises:
        UsageError, MachineError: the address cannot be had; DataError: a word list is none; and what `opened` raises.
        MachineError: the model's runtime ended, which no request mends; who started the server may start another.
        StoppedError: told to end while the model was loading.
    """
    key = settings.key
    if key is not None and (not key.isascii() or not key.isprintable() or not key or " " in key):
        raise UsageError(
            "a key is one word of ASCII", code="LK0833", where="--api-key", next="give one such as `openssl rand -hex 16`"
        )
    desk = Desk(Words(settings.sensitive), settings.queue, settings.max_tokens, settings.name)
    with listening.bind(settings.host, settings.port, key=key) as listener:
        base = listening.url(listener, settings.host)
        with listening.Listening(app.build(desk, key=key, host=settings.host), listener) as server:
            stop.loading = True
            with opened() as speaker:
                stop.loading = False
                desk.open(speaker)
                name = settings.name or speaker.name
                ready(Ready(f"{base}/v1", name, speaker.runtime, speaker.context, speaker.parallel))
                while server.alive and speaker.alive and not stop.asked:
                    time.sleep(_TICK)
                if not stop.asked:
                    raise _lost(base) if speaker.alive else _silent(name)
                cut = _drain(desk, server, stop, seconds=settings.drain_seconds)
    return Served(desk.metrics, cut)


@contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM tell `stop`. A third has its usual effect."""

    def heard(number: int, frame: FrameType | None) -> None:
        stop.ask()
        if stop.now:
            restore()
        if stop.loading:
            raise StoppedError

    before: dict[signal.Signals, Any] = {number: signal.signal(number, heard) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()


def _lost(base: str) -> MachineError:
    return MachineError("the HTTP server has ended", code="LK0835", where=base, next="see the lines above")


def _silent(name: str) -> MachineError:
    return MachineError(
        "the model's runtime has ended, and with it the server", code="LK0805", where=name, next="start it again"
    )


def _drain(desk: Desk, server: listening.Listening, stop: Stop, *, seconds: float) -> int:
    """Requests that were dropped, after all that were accepted have been answered or time is up."""
    desk.draining = True
    if desk.in_flight:
        progress.note(f"ending: {desk.in_flight} requests are still being answered; once more ends at once")
    deadline = time.monotonic() + seconds
    time.sleep(_TICK)  # for a request that is being counted in just now
    while server.alive and desk.in_flight and not stop.now and time.monotonic() < deadline:
        time.sleep(_TICK)
    cut = desk.in_flight
    if cut:
        server.cut()
    return cut
