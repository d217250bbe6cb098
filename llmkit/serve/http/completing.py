"""Answers /v1/chat/completions and /v1/completions, whole or as a stream. Knows ASGI and the desk; nothing of runtimes.

A client that leaves ends the computation of its answer, wherever that is. A stream's status is sent with its first text, so
what fails before that is an ordinary error.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from llmkit.serve.http import asked, replies
from llmkit.serve.http.asked import Asked
from llmkit.serve.http.bodies import Bodies, GoneError
from llmkit.serve.http.desk import Desk
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.http.replies import Envelope, Said, Shape, Usage
from llmkit.serve.http.served import Prompt, Served
from llmkit.serve.speaker import Wish

# Proxies such as nginx would hold a stream back.
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_JSON = (b"content-type", b"application/json")


class Completing:
    """The endpoint of one shape."""

    def __init__(self, desk: Desk, bodies: Bodies, shape: Shape) -> None:
        self._desk = desk
        self._bodies = bodies
        self._shape = shape
        self._parse = asked.PARSERS[shape.name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RefusalError before anything is sent."""
        started = time.monotonic()
        self._desk.model(None)  # a body is not even read before the model is there
        try:
            async with self._bodies.read(receive) as body:
                wanted = self._parse(body)
                served = self._desk.model(wanted.model)
                with served.admitted(wanted):
                    reply = _Reply(wanted, served, Envelope(self._shape, served.name), send, started)
                    await _unless_gone(receive, reply.stream() if wanted.stream else reply.whole())
                    self._desk.metrics.duration.observe(time.monotonic() - started)
        except GoneError:
            return


@dataclass
class _Reply:
    """One request's. `started`: by the monotonic clock; `begun`: the status is sent."""

    wanted: Asked
    served: Served
    envelope: Envelope
    send: Send
    started: float
    begun: bool = False
    tokens: int = 0
    heard: bool = False

    async def whole(self) -> None:
        prompts = await self.served.prompts(self.wanted)
        texts: list[list[str]] = [[] for _ in range(self.wanted.answers)]
        ends = [""] * self.wanted.answers

        async def keep(index: int, text: str, finish: str) -> None:
            texts[index].append(text)
            ends[index] = finish

        await self._say_all(prompts, keep)
        said = [Said("".join(parts), end) for parts, end in zip(texts, ends, strict=True)]
        body = self.envelope.whole(said, self._usage(prompts))
        length = (b"content-length", str(len(body)).encode())
        await self.send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        await self.send({"type": "http.response.body", "body": body})

    async def stream(self) -> None:
        prompts = await self.served.prompts(self.wanted)
        counted = self.wanted.include_usage

        async def tell(index: int, text: str, finish: str) -> None:
            if text or finish:
                await self._event(self.envelope.part(index, text, finish=finish, with_usage=counted))

        try:
            await self._say_all(prompts, tell, opening=lambda index: self.envelope.opening(index, with_usage=counted))
        except RefusalError as error:
            if not self.begun:
                raise
            await self._event(replies.failure(error.body))  # too late for a status
        else:
            if counted:
                await self._event(self.envelope.usage(self._usage(prompts)))
            await self._event(replies.DONE)
        await self.send({"type": "http.response.body", "body": b""})

    async def _say_all(
        self,
        prompts: Sequence[Prompt],
        tell: Callable[[int, str, str], Awaitable[None]],
        *,
        opening: Callable[[int], bytes] = lambda index: b"",
    ) -> None:
        """All answers at once, as far as there are turns."""
        pairs = [(prompt, choice) for prompt in prompts for choice in range(self.wanted.choices)]
        await _together(
            [
                self._say(index, prompt, self._wish(choice), tell, opening=opening)
                for index, (prompt, choice) in enumerate(pairs)
            ]
        )

    async def _say(
        self,
        index: int,
        prompt: Prompt,
        wish: Wish,
        tell: Callable[[int, str, str], Awaitable[None]],
        *,
        opening: Callable[[int], bytes],
    ) -> None:
        spoken = False
        async with aclosing(self.served.say(prompt, wish)) as pieces:
            async for piece in pieces:
                if not spoken and (first := opening(index)):
                    await self._event(first)
                spoken = True
                if not self.heard:
                    self.heard = True
                    self.served.metrics.first_token.observe(time.monotonic() - self.started)
                self.tokens += piece.tokens
                await tell(index, piece.text, piece.finish)

    async def _event(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            await self.send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    def _wish(self, choice: int) -> Wish:
        """A seed for each choice: of one, all would be alike."""
        wish = self.wanted.wish
        return wish if wish.seed is None else replace(wish, seed=(wish.seed + choice) % asked.SEEDS)

    def _usage(self, prompts: Sequence[Prompt]) -> Usage:
        return Usage(sum(prompt.tokens for prompt in prompts), self.tokens)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or as much of it as is done when the client leaves. Raises GoneError where it does."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_leaving(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise GoneError
    task.result()


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of it; the first failure ends the rest and is raised as it is."""
    if len(work) == 1:
        await work[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
