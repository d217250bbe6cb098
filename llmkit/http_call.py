"""One HTTP request that ends in time whatever the other side does. Knows sockets; nothing of what is asked.

http.client alone bounds each read, not their sum: a server that drips one byte a minute would hold it for ever.
It takes no proxy from the environment, follows no redirect and unpacks nothing.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import SplitResult

from llmkit.errors import UsageError

MAX_BODY = 16 << 20  # bytes; the longest answer of any model is far below


@dataclass(frozen=True)
class Reply:
    """A whole answer. `body`: at most `MAX_BODY` bytes."""

    status: int
    reason: str
    headers: Message
    body: bytes


class LostError(Exception):
    """No whole answer came, and why; another try may get one."""


class Caller:
    """Requests to one host, from any threads; `stop` ends all under way.

    `timeout`: seconds to connect to an address, and seconds from then to the last byte.
    """

    def __init__(self, address: SplitResult, *, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._context = ssl.create_default_context() if address.scheme == "https" else None
        self._open: set[socket.socket] = set()
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        for one in list(self._open):
            _cut(one)

    def send(self, method: str, path: str, body: Any, *, headers: Mapping[str, str]) -> Reply:
        """The reply to one request with a JSON body, None for none.

        Raises:
            LostError: no connection, none in time, a reply that is cut short, too long or no HTTP.
            UsageError: the host's certificate is not valid.
        """
        started = time.monotonic()
        target = f"{path}?{self._address.query}" if self._address.query else path
        try:
            with self._connection() as connection:
                connection.request(method, target, None if body is None else json.dumps(body), dict(headers))
                response = connection.getresponse()
                content = response.read(MAX_BODY + 1)
        except ssl.SSLCertVerificationError as error:
            host = self._address.hostname or ""
            raise UsageError(
                f"the endpoint's certificate is not valid: {error.verify_message}", code="LK0703", where=host
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a status or a length that is no number
            late = isinstance(error, TimeoutError) or self._late(started)
            raise LostError(self._no_answer if late else f"the connection failed: {error or type(error).__name__}") from None
        if len(content) > MAX_BODY:
            raise LostError(f"an answer of more than {MAX_BODY >> 20} MiB")
        if self._late(started):  # where no length was promised, a connection that was cut looks like a whole body
            raise LostError(self._no_answer)
        if response.length:
            raise LostError("the answer is cut short")
        return Reply(response.status, response.reason, response.headers, content)

    @property
    def _no_answer(self) -> str:
        return f"no whole answer in {self._timeout:g} s"

    def _late(self, started: float) -> bool:
        return time.monotonic() - started >= self._timeout

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that is cut when its time is up or all is to stop."""
        host, port = self._address.hostname or "", self._address.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
            if self._context
            else http.client.HTTPConnection(host, port, timeout=self._timeout)
        )
        try:
            connection.connect()
            sock = connection.sock
            timer = threading.Timer(self._timeout, _cut, [sock])
            timer.daemon = True
            timer.start()
            self._open.add(sock)
            try:
                if self._stopped:
                    raise ConnectionAbortedError("stopped")
                yield connection
            finally:
                timer.cancel()
                self._open.discard(sock)
        finally:
            connection.close()


def _cut(sock: socket.socket) -> None:
    """Let whoever reads from it see its end. Not SSLSocket's own method, which takes down what another thread uses."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
