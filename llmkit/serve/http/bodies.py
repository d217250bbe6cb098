"""Reads a request's body within limits of size and time. Knows ASGI; nothing of what is in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from llmkit.serve.http.refusal import RefusalError

MAX_BODY = 4 << 20  # bytes: several times what the longest contexts of today hold
_TOTAL = 64 << 20  # bytes of bodies that are being read or answered
_SECONDS = 60.0


class GoneError(Exception):
    """The client closed its connection."""


class Bodies:
    """Those of one server. `held`: bytes of all that are here."""

    def __init__(self) -> None:
        self.held = 0

    @asynccontextmanager
    async def read(self, receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, which counts for as long as the context lasts.

        Raises:
            RefusalError: 413 too large, 408 too slow, 429 too much from all clients together.
            GoneError: the client left.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with _in_time():
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    size += len(parts[-1])
                    self.held += len(parts[-1])
                    self._check(size)
            yield b"".join(parts)
        finally:
            self.held -= size

    def _check(self, size: int) -> None:
        if size > MAX_BODY:
            raise RefusalError(413, f"the body has more than {MAX_BODY >> 20} MiB", code="body_too_large")
        if self.held > _TOTAL:
            told = "too many large requests at once; ask again later"
            raise RefusalError(429, told, code="rate_limit_exceeded", retry_after=1)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_SECONDS):
            yield
    except TimeoutError:
        raise RefusalError(408, f"no whole body in {_SECONDS:g} s", code="timeout") from None
