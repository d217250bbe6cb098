"""What chat and serve ask of a runtime. Knows texts and tokens; nothing of HTTP, terminals or which runtime it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Message = Mapping[str, str]  # role, content


@dataclass(frozen=True)
class Wish:
    """How to answer. `max_tokens` None: as long as the context allows; `temperature` 0: greedy; `seed` None: another each time.

    `stop`: texts that end an answer and are no part of it.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer, of whole characters. `tokens`: how many it took; `finish`: "" but in the last: stop or length."""

    text: str
    tokens: int
    finish: str = ""


class Speaker(Protocol):
    """A loaded model. Its methods may be called from many threads at once; what is asked together is computed together.

    `name`: what it is called; `runtime`: such as "llama.cpp on cpu"; `context`: tokens that prompt and answer share;
    `parallel`: answers that are made at once, the rest wait their turn; `alive`: False once the runtime has ended for good.
    """

    name: str
    runtime: str
    context: int
    parallel: int

    @property
    def alive(self) -> bool: ...

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's own template makes, ready for an answer. Raises DataError where it refuses."""

    def count(self, prompt: str) -> int:
        """Tokens of a prompt, BOS and special tokens as `speak` reads them."""

    def speak(self, prompt: str, wish: Wish) -> Iterator[Piece]:
        """The answer as it comes; closing the iterator ends its computation.

        Raises:
            DataError: the prompt does not fit the context.
            MachineError: the runtime failed.
        """

    def close(self) -> None:
        """End the runtime; answers under way end with a MachineError."""
