"""A loaded model behind its gate: who is let in, what it reads, what it says. Knows no HTTP. One event loop uses it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from llmkit.errors import LlmkitError
from llmkit.serve.http import refusal
from llmkit.serve.http.admission import FullError, Gate
from llmkit.serve.http.answering import Answering
from llmkit.serve.http.asked import Asked
from llmkit.serve.http.metrics import Metrics
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.http.screen import Screen, Words
from llmkit.serve.speaker import Message, Piece, Speaker, Wish

CONTENT_FILTER = "content_filter"
_LONGEST_WAIT = 60  # seconds
# More than tokens have in any text: what is longer is not even read, which could take minutes.
_TOKEN_CHARS = 64


@dataclass(frozen=True)
class Prompt:
    """What the model reads. `tokens`: its length, special tokens included; `param`: the field it came from."""

    text: str
    tokens: int
    param: str


@dataclass
class Served:
    """`name`: what clients call it; `max_tokens`: of one answer; `pool`: has a thread for each answer that is made at once.

    `since`: Unix time.
    """

    speaker: Speaker
    name: str
    gate: Gate
    pool: Executor
    words: Words
    max_tokens: int
    metrics: Metrics
    since: int = field(default_factory=lambda: int(time.time()))

    @contextmanager
    def admitted(self, asked: Asked) -> Iterator[None]:
        """Room for a request's answers.

        Raises:
            RefusalError: 400 for a prompt that cannot fit or has a sensitive word, 429 where too many wait.
        """
        self._check_sizes(asked)
        if any(self.words.found_in(text) for text in asked.texts()):
            self.metrics.filtered += 1
            told = "the prompt holds a word that this server refuses"
            raise RefusalError(400, told, code=CONTENT_FILTER, param=asked.param)
        if asked.answers > self.gate.room:
            raise RefusalError(400, f"at most {self.gate.room} answers a request", code="invalid_value", param="n")
        try:
            self.gate.admit(asked.answers)
        except FullError:
            seconds = max(1, min(_LONGEST_WAIT, round(self.metrics.duration.mean)))
            told = "too many requests wait for an answer; ask again later"
            raise RefusalError(429, told, code="rate_limit_exceeded", retry_after=seconds) from None
        try:
            yield
        finally:
            self.gate.dismiss(asked.answers)

    async def prompts(self, asked: Asked) -> list[Prompt]:
        """What the model will read. Raises RefusalError: 400 where its template refuses it, or it leaves no room to answer."""
        try:
            made = [await asyncio.to_thread(self._prompt, given, asked.param) for given in asked.prompts]
        except LlmkitError as error:
            raise refusal.of(error, param=asked.param) from None
        for prompt in made:
            if prompt.tokens >= self.speaker.context:
                raise refusal.too_long(f"{prompt.tokens} tokens", self.speaker.context, param=asked.param)
        self.metrics.prompt_tokens += sum(prompt.tokens for prompt in made)
        return made

    async def say(self, prompt: Prompt, wish: Wish) -> AsyncGenerator[Piece, None]:
        """The answer, when its turn has come, in pieces without sensitive words; the last has a `finish`.

        Raises:
            RefusalError: the runtime failed, or refused the prompt.
        """
        limit = min(wish.max_tokens or self.max_tokens, self.max_tokens, self.speaker.context - prompt.tokens)
        await self.gate.enter()
        answering = Answering(self.pool, self.speaker, prompt.text, replace(wish, max_tokens=limit), ended=self.gate.leave)
        screen = Screen(self.words, before=prompt.text)
        finish = ""
        try:
            while not finish:
                piece = await answering.take() or Piece("", 0, "stop")
                self.metrics.generated_tokens += piece.tokens
                text = screen.push(piece.text, last=bool(piece.finish))
                finish = CONTENT_FILTER if screen.caught else piece.finish
                yield Piece(text, piece.tokens, finish)
        except LlmkitError as error:
            raise refusal.of(error, param=prompt.param) from None
        finally:
            answering.stop()
            self.metrics.filtered += screen.caught

    def _check_sizes(self, asked: Asked) -> None:
        for given in asked.prompts:
            size = len(given) if isinstance(given, str) else sum(len(message["content"]) for message in given)
            if size > _TOKEN_CHARS * self.speaker.context:
                raise refusal.too_long(f"{size} characters", self.speaker.context, param=asked.param)

    def _prompt(self, given: Sequence[Message] | str, param: str) -> Prompt:
        text = given if isinstance(given, str) else self.speaker.render(given)
        return Prompt(text, self.speaker.count(text), param)
