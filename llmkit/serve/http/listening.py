"""A socket, and uvicorn on it in a thread of its own. Knows connections; nothing of what is asked on them."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from llmkit.errors import MachineError, UsageError
from llmkit.serve.http.door import is_loopback

_BACKLOG = 1024
_CONNECTIONS = 512  # more get 503 from uvicorn: each is a file descriptor, of which a process has 1,024 by default
_KEEP_SECONDS = 75  # longer than clients keep an idle connection, which then never closes under a request
_CLOSE_SECONDS = 10.0
# Seconds that a connection may stay in a state in which it does nothing.
_PATIENCE = {"closing": _CLOSE_SECONDS, "stalled": 60.0, "idle": 90.0}


def bind(host: str, port: int, *, key: str | None) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: an address beyond this machine without a key, or one that is none.
        MachineError: it cannot be had: another program has it, or it is not this machine's.
    """
    where = f"--host {host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"this names no address: {error}", code="LK0832", where=where, next="give 127.0.0.1, or an address of this machine"
        ) from None
    if key is None and not all(is_loopback(str(entry[4][0])) for entry in found):
        raise UsageError(
            "beyond this machine, a server needs a key",
            code="LK0831",
            where=where,
            next="set LLMKIT_API_KEY (or --api-key), or leave --host out",
        )
    # Where a name has both, clients try 127.0.0.1 more often than ::1.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise MachineError(
            f"cannot listen there: {told}",
            code="LK0830",
            where=f"{host}:{port}",
            next="end what listens there, or take another --port (0: any free one)",
        ) from None


def url(listener: socket.socket, host: str) -> str:
    """Where clients find it."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


class Listening:
    """The app, answering on a socket while the context lasts; leaving it closes every connection."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # else errors would go to stderr by themselves
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            log_level="critical",
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_SECONDS,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while self.alive and not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=_CLOSE_SECONDS)
        if self._thread.is_alive():
            self.cut()
            self._thread.join(timeout=_CLOSE_SECONDS)
        self._listener.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def cut(self) -> None:
        """Drop every connection, whatever is being sent."""
        self._server.cut_soon = True

    def _run(self) -> None:
        self._server.run(sockets=[self._listener])


class _Server(uvicorn.Server):
    """Leaves signals to others, and drops connections on which nothing moves: uvicorn would keep them for ever."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.cut_soon = False
        self._still: dict[Any, tuple[str, float]] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeping = asyncio.create_task(self._sweep())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            connections = set(self.server_state.connections)
            self._still = {
                one: self._still[one] if one in self._still and self._still[one][0] == state else (state, now)
                for one in connections
                if (state := _state(one))
            }
            for one in connections:
                state, since = self._still.get(one, ("", now))
                if self.cut_soon or (state and now - since > _PATIENCE[state]):
                    one.transport.abort()


def _state(connection: Any) -> str:
    """What keeps a connection from moving; "" where nothing does."""
    if connection.transport.is_closing():
        return "closing"
    if connection.flow.write_paused:
        return "stalled"
    return "idle" if connection.cycle is None or connection.cycle.response_complete else ""
