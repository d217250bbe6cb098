"""What a person types, or what a pipe brings, as messages. Knows lines and prompts; nothing of models."""

import contextlib
import sys
from typing import TextIO

from llmkit.errors import DataError
from llmkit.serve.chat.screen import sound

MOST_CHARACTERS = 1_000_000  # of one message: far more than any context
_BLOCK = '"""'


class Typed:
    """Messages typed at a terminal: one a line; a line that ends in a backslash goes on, as does a block in triple quotes."""

    def __init__(self, *, drawn: bool) -> None:
        """`drawn`: stdout is the terminal too, so that `readline` draws the prompt and the line can be edited."""
        self._drawn = drawn
        if drawn:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() edits lines once it is imported

    def read(self) -> str:
        """The next message; raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C, which drops what was begun."""
        line = self._line("> ")
        if line.lstrip().startswith(_BLOCK):
            return self._block(line.lstrip().removeprefix(_BLOCK))
        lines = []
        while line.endswith("\\"):
            lines.append(line.removesuffix("\\"))
            line = self._line(". ")
        return _checked("\n".join([*lines, line]))

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(_BLOCK):
            lines.append(line)
            line = self._line(". ")
        return _checked("\n".join([*lines, line.rstrip().removesuffix(_BLOCK)]).strip("\n"))

    def _line(self, prompt: str) -> str:
        if self._drawn:
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()


class Piped:
    """Messages from a pipe or a file: every line is one, as it stands."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self) -> str:
        """The next line; raises EOFError at the end, DataError for one that is no message."""
        line = self._stream.readline(MOST_CHARACTERS + 2)
        if not line:
            raise EOFError
        return _checked(line.rstrip("\r\n"))


def _checked(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"a message has at most {MOST_CHARACTERS:,} characters", code="LK0871", next="send it in parts")
    return sound(text)
