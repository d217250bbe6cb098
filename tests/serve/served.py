"""A speaker that needs no model, as the real ones behave, and a server before it."""

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llmkit.errors import DataError, MachineError
from llmkit.serve.answer import Answer
from llmkit.serve.http import running
from llmkit.serve.http.running import Ready, Settings, Stop
from llmkit.serve.speaker import Message, Piece, Wish


class Echo:
    """Repeats the last message, a character a token, `size` of them a piece; a prompt's tokens are its characters.

    `fail` in it fails the runtime at the fourth piece; a text at temperature above 0 ends with its seed.
    """

    name = "echo"
    runtime = "nothing"

    def __init__(self, *, parallel: int = 4, context: int = 4000, pause: float = 0.0, size: int = 1) -> None:
        self.size = size
        self.parallel = parallel
        self.context = context
        self.pause = pause
        self.running = 0
        self.most_running = 0
        self.made = 0
        self.dead = False
        self.lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return not self.dead

    def render(self, messages: Sequence[Message]) -> str:
        if any(message["content"] == "refuse" for message in messages):
            raise DataError("the chat template refuses these messages", code="LK0001")
        return messages[-1]["content"]

    def count(self, prompt: str) -> int:
        if self.dead:
            raise MachineError("the runtime has ended", code="LK0001")
        return len(prompt)

    def speak(self, prompt: str, wish: Wish) -> Answer:
        text = prompt if wish.temperature == 0 or wish.seed is None else f"{prompt}#{wish.seed}"
        return Answer(_Echoing(self, text, wish.max_tokens or self.context), wish.stop)

    def close(self) -> None:
        self.dead = True


class _Echoing:
    def __init__(self, speaker: Echo, text: str, limit: int) -> None:
        self._speaker, self._text, self._limit = speaker, text, limit
        self._place = 0
        self._closed = threading.Event()
        with speaker.lock:
            speaker.running += 1
            speaker.most_running = max(speaker.most_running, speaker.running)

    def __next__(self) -> Piece:
        if self._closed.wait(self._speaker.pause):
            raise StopIteration
        if self._speaker.dead or (self._place == 3 and "fail" in self._text):
            raise MachineError("the runtime has ended", code="LK0001")
        if self._place == len(self._text):
            return Piece("", 0, "stop")
        if self._place == self._limit:
            return Piece("", 0, "length")
        text = self._text[self._place : min(self._place + self._speaker.size, self._limit)]
        self._place += len(text)
        self._speaker.made += len(text)
        return Piece(text, len(text))

    def close(self) -> None:
        with self._speaker.lock:
            self._speaker.running -= not self._closed.is_set()
            self._closed.set()


@dataclass
class Server:
    """One under test. `done` is there once it has ended."""

    speaker: Any
    stop: Stop
    ready: Ready | None = None
    done: running.Served | None = None
    thread: threading.Thread | None = None
    failures: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        assert self.ready
        return self.ready.url

    @property
    def address(self) -> tuple[str, int]:
        found = urlsplit(self.url)
        assert found.hostname
        assert found.port
        return found.hostname, found.port

    def request(
        self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None, method: str = ""
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, JSON or text, headers with names in lower case) of one request."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, data, dict(headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, json.loads(text) if "json" in found["content-type"] else text, found
        finally:
            connection.close()

    def chat(self, text: str, **more: object) -> tuple[int, Any, Mapping[str, str]]:
        return self.request("/v1/chat/completions", chat(text, **more))

    def end(self) -> running.Served:
        self.stop.ask()
        assert self.thread
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()
        assert self.done, self.failures
        return self.done


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


@contextlib.contextmanager
def serving(speaker: Any = None, *, opened: Any = None, **settings: Any) -> Iterator[Server]:
    """A server on a free port in this process, ended when the context is; `opened` makes a context of its speaker."""
    server = Server(speaker, Stop())
    open_it = opened or (lambda: contextlib.closing(speaker))
    known = threading.Event()

    def ready(now: Ready) -> None:
        server.ready = now
        known.set()

    def run() -> None:
        try:
            server.done = running.serve(open_it, Settings(**{"port": 0, **settings}), ready=ready, stop=server.stop)
        except BaseException as error:
            server.failures.append(error)
            known.set()
            raise

    server.thread = threading.Thread(target=run, daemon=True)
    server.thread.start()
    assert known.wait(300)
    assert server.ready, server.failures
    try:
        yield server
    finally:
        server.stop.ask()
        server.stop.ask()
        server.thread.join(timeout=30)
        assert not server.thread.is_alive()


def eventually(condition: Any, *, seconds: float = 10.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def main() -> None:
    """A server in a process of its own: signals, and a line once it answers."""
    stop = Stop()
    with running.signals(stop):
        done = running.serve(
            lambda: contextlib.closing(Echo(parallel=2, pause=0.02)),
            Settings(port=0, drain_seconds=float(sys.argv[1])),
            ready=lambda now: print(now.url, flush=True),
            stop=stop,
        )
    print(json.dumps({"cut": done.cut}), flush=True)


if __name__ == "__main__":
    main()
