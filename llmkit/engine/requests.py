"""An answer under way in an engine that makes several at once. Knows token ids and queues; nothing of models.

An engine has `ask(prompt, choice) -> Request` and `close()`; `continuous` and `vllm_stream` are two.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmkit.answers import Decoding


@dataclass(frozen=True)
class Choice:
    """How the tokens of an answer are chosen. `seed` None: in another way each time; that of `decoding` is not read."""

    decoding: Decoding
    seed: int | None = None


@dataclass(frozen=True)
class Step:
    """One more token of an answer, None in a last step that has none; `finish`: stop or length in the last, else empty."""

    token: int | None
    finish: str = ""


class Request:
    """One answer. `next` waits for its next step; `close` may come from another thread, and then there is none."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._steps: queue.SimpleQueue[Step | Exception | None] = queue.SimpleQueue()
        self._said = 0

    def __next__(self) -> Step:
        found = self._steps.get()
        if found is None:
            self._steps.put(None)
            raise StopIteration
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self._steps.put(None)  # first: whoever waits hears that it ended, and not why the engine says it did
        self._cancel()

    def hear(self, tokens: Sequence[int], *, finish: str) -> None:
        """What the engine has to add."""
        for position, token in enumerate(tokens, 1):
            self._steps.put(Step(token, finish if position == len(tokens) else ""))
        if finish and not tokens:
            self._steps.put(Step(None, finish))
        self._said += len(tokens)

    def hear_all(self, tokens: Sequence[int], *, finish: str) -> None:
        """As `hear`, of an engine that says again what it has said."""
        self.hear(tokens[self._said :], finish=finish)

    def fail(self, error: Exception) -> None:
        self._steps.put(error)


class Engine(Protocol):
    """`alive`: False once it has failed for good, or was closed."""

    @property
    def alive(self) -> bool: ...

    def ask(self, prompt: Sequence[int], choice: Choice) -> Request:
        """Begin an answer of at most `choice.decoding.max_new_tokens` tokens. Raises MachineError once the model failed."""

    def close(self) -> None:
        """End everything; answers under way end with a MachineError."""
