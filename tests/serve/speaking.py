"""A speaker that needs no model, and a chat at a pseudo-terminal."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmkit.errors import DataError
from llmkit.serve.speaker import Message, Piece, Wish

ROOT = Path(__file__).parents[2]
# A terminal's process group gets its signals only once the terminal is the process's own.
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


class Fake:
    """Says what `answer` makes of the prompt, a character a piece; a prompt is its messages as JSON, a character a token."""

    runtime = "nothing"
    parallel = 1
    alive = True

    def __init__(
        self, answer: Callable[[str], str] = lambda prompt: f"<{asked(prompt)}>", *, name: str = "fake", context: int = 10_000
    ) -> None:
        self._answer, self.name, self.context = answer, name, context
        self.pause = 0.0
        self.wishes: list[Wish] = []
        self.closed = 0

    def render(self, messages: Sequence[Message]) -> str:
        if any(message["content"] == "refuse me" for message in messages):
            raise DataError("the template refuses it", code="LK0317")
        return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)

    def count(self, prompt: str) -> int:
        return len(prompt)

    def speak(self, prompt: str, wish: Wish) -> Iterator[Piece]:
        self.wishes.append(wish)
        text = self._answer(prompt)
        whole = wish.max_tokens is None or len(text) <= wish.max_tokens
        text = text[: wish.max_tokens]
        try:
            for place, character in enumerate(text):
                time.sleep(self.pause)
                last = place == len(text) - 1
                yield Piece(character, 1, ("stop" if whole else "length") if last else "")
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def said(prompt: str) -> list[list[str]]:
    """The messages of a `Fake`'s prompt, as [role, content]."""
    found: list[list[str]] = json.loads(prompt)
    return found


def asked(prompt: str) -> str:
    return said(prompt)[-1][1]


class Terminal:
    """A program whose streams are a terminal of `width` columns."""

    def __init__(self, script: str, *, width: int = 80, environment: dict[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        keep = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.program = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL + script],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env={**keep, "TERM": "xterm", "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, *, seconds: float = 60) -> str:
        """What has been shown since the last call, once `text` is among it."""
        end = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < end and self._read():
            pass
        assert text in self.shown, self.shown
        shown, _, self.shown = self.shown.partition(text)
        return shown + text

    def end(self, *, seconds: float = 60) -> tuple[int, str]:
        """The exit code, and all that was still shown."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read():
            pass
        os.close(self._master)
        return self.program.wait(timeout=10), self.shown

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait(timeout=10)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            block = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += block.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(block)
