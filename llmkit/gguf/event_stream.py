"""One answer of llama.cpp's server as it comes. Knows server-sent events and sockets; nothing of models or prompts.

The stream can be closed from another thread while it waits, which frees the server's slot: llama.cpp looks, between two
tokens and once a second, whether anybody still listens.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

# llama.cpp says that it lives (an empty comment) this often while there is nothing else to say.
PING_SECONDS = 5
_DEAD_SECONDS = 60.0  # without even that
# It tells of each part of the prompt and each token. A machine that holds the model is never so long without either.
_SILENCE_SECONDS = 600.0
_MOST_LINE = 16 << 20


class RefusedError(Exception):
    """The server answered, but not with events. `status`: HTTP's; `answer`: its JSON, {} where it is none."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.answer = answer


class BrokenError(Exception):
    """The server died, fell silent, or talks nonsense."""


class EventStream(Iterator[dict[str, Any]]):
    """The events of one POST, each a JSON object; the last has `stop` true.

    Iterating raises `RefusedError` or `BrokenError`; after `close` it ends without a word.
    """

    def __init__(self, address: tuple[str, int], path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=_SILENCE_SECONDS)
        self._post = (path, json.dumps(body), {"Content-Type": "application/json", **headers})
        self._response: http.client.HTTPResponse | None = None
        self._plug: socket.socket | None = None
        self._reading = threading.Lock()
        self._closed = False
        self._last = time.monotonic()

    def __next__(self) -> dict[str, Any]:
        try:
            with self._reading:
                found = {} if self._closed else self._read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if self._closed:
                raise StopIteration from None
            raise BrokenError(str(error)) from None
        if self._closed:
            raise StopIteration
        if found.get("stop"):
            self.close()
        return found

    def close(self) -> None:
        """End it, from any thread: what waits in `next` returns at once."""
        self._closed = True
        if (plug := self._plug) is not None:
            with contextlib.suppress(OSError):
                plug.shutdown(socket.SHUT_RDWR)
        with self._reading:  # a descriptor must not be closed, and used again, under who reads it
            self._connection.close()

    def _read(self) -> dict[str, Any]:
        response = self._response or self._open()
        while True:
            line = response.readline(_MOST_LINE)
            if not line:
                raise ConnectionResetError("the stream ended before the answer did")
            if time.monotonic() - self._last > _SILENCE_SECONDS:
                raise TimeoutError(f"no token in {_SILENCE_SECONDS:.0f} s")
            name, _, value = line.decode("utf-8", "replace").partition(":")
            if name == "error":
                raise RefusedError(http.client.INTERNAL_SERVER_ERROR, {"error": _json(value)})
            if name == "data" and (found := _json(value)):
                self._last = time.monotonic()
                if "error" in found:
                    raise RefusedError(int(found["error"].get("code", 500)), found)
                return found

    def _open(self) -> http.client.HTTPResponse:
        path, body, headers = self._post
        self._connection.request("POST", path, body, headers)
        self._plug = plug = self._connection.sock
        if self._closed:
            raise ConnectionAbortedError
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            raise RefusedError(response.status, _json(response.read(_MOST_LINE).decode("utf-8", "replace")))
        plug.settimeout(_DEAD_SECONDS)
        self._response = response
        return response


def _json(text: str) -> dict[str, Any]:
    """An object, {} for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
