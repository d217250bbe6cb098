"""One dialogue with one speaker: what was said, what of it still fits the context, and the answer as it comes.

Knows messages, tokens and threads; nothing of terminals.
"""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from queue import SimpleQueue

from llmkit.errors import DataError
from llmkit.serve.speaker import Message, Piece, Speaker, Wish

_ROOM_SHARE = 4  # an answer without a limit is left a quarter of the context


@dataclass(frozen=True)
class Asked:
    """A message made ready: the prompt, its wish cut to the context, and the first exchange that the model still sees."""

    text: str
    prompt: str
    wish: Wish
    first: int


@dataclass(frozen=True)
class Heard:
    """A piece of the answer of side `index`; `at`: when it came, by `time.perf_counter`."""

    index: int
    piece: Piece
    at: float


class Talk:
    """A speaker and what was said to it and by it. `name` tells it from another one beside it."""

    def __init__(self, speaker: Speaker, *, name: str, system: str = "") -> None:
        self.speaker, self.name, self.system = speaker, name, system
        self._said: list[tuple[str, str, str]] = []  # the system prompt it was asked under, question, answer
        self._first = 0  # exchanges before it no longer fit the context

    def ask(self, text: str, wish: Wish) -> Asked:
        """The prompt that asks `text` after what was said; the oldest exchanges are left out until an answer has room.

        Changes nothing: `keep` does, once there is an answer.

        Raises:
            DataError: the message alone does not fit the context, or the template refuses it.
        """
        context = self.speaker.context
        room = min(wish.max_tokens or context, max(1, context // _ROOM_SHARE))
        for first in range(self._first, len(self._said) + 1):
            prompt = self.speaker.render(self._messages(first, text))
            tokens = self.speaker.count(prompt)
            if tokens + room <= context:
                break
        if tokens >= context:
            raise DataError(
                f"the message takes {tokens} tokens, and the context holds {context}",
                code="LK0871",
                where=self.name,
                next="shorten it or the system prompt, or start with a larger --context",
            )
        return Asked(text, prompt, replace(wish, max_tokens=min(wish.max_tokens or context, context - tokens)), first)

    def keep(self, asked: Asked, answer: str) -> int:
        """Remember an exchange; returns how many older ones the model no longer sees because of it."""
        dropped = asked.first - self._first
        self._first = asked.first
        self._said.append((self.system, asked.text, answer))
        return dropped

    def forget(self) -> None:
        """Start anew; the system prompt stays."""
        self._said, self._first = [], 0

    def dialogues(self) -> list[list[Message]]:
        """Everything said, also what no longer fits: a dialogue for each system prompt it was said under, in turn."""
        parts = groupby(self._said, key=itemgetter(0))
        return [_dialogue(system, [one[1:] for one in said]) for system, said in parts]

    def _messages(self, first: int, text: str) -> list[Message]:
        said = [one[1:] for one in self._said[first:]]
        return [*_dialogue(self.system, said), {"role": "user", "content": text}]


def _dialogue(system: str, said: Iterable[tuple[str, str]]) -> list[Message]:
    found: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in said:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return found


def listen(talks: Sequence[Talk], asked: Sequence[Asked]) -> Generator[Heard, None, None]:
    """The pieces of all answers as they come, whichever comes first. Ends when all have; closing it stops them.

    Each speaker is read in a thread of its own, so that Ctrl-C finds this one waiting and not inside a runtime.

    Raises:
        LlmkitError: what the first speaker to fail raised; the others are stopped.
    """
    heard: SimpleQueue[Heard | Future[None]] = SimpleQueue()
    stop = threading.Event()
    answers: list[Iterator[Piece]] = []

    def read(index: int) -> None:
        pieces = talks[index].speaker.speak(asked[index].prompt, asked[index].wish)
        answers.append(pieces)
        for piece in pieces:
            if stop.is_set():
                break
            heard.put(Heard(index, piece, time.perf_counter()))
        _close(pieces)

    threads = ThreadPoolExecutor(len(talks), thread_name_prefix="chat")
    try:
        for index in range(len(talks)):
            threads.submit(read, index).add_done_callback(heard.put)
        running = len(talks)
        while running:
            one = heard.get()
            if isinstance(one, Heard):
                yield one
            else:
                one.result()
                running -= 1
    finally:
        stop.set()
        for pieces in answers:
            _close(pieces)
        threads.shutdown(wait=False)


def _close(pieces: Iterator[Piece]) -> None:
    """End an answer's computation, not when the garbage collector comes to it."""
    close = getattr(pieces, "close", None)
    with suppress(ValueError):  # a generator that its thread is in: that closes it, at its next piece
        if close:
            close()
