"""One answer, made in a thread and taken in an event loop. Knows both; nothing of HTTP.

What a reader has not taken yet is joined into one piece, so a slow one holds no more than the answer's own text, and the model
never waits for it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor

from llmkit.serve.speaker import Piece, Speaker, Wish


class Answering:
    """An answer under way; create it in the event loop. `ended` is called there once its computation has ended."""

    def __init__(self, pool: Executor, speaker: Speaker, prompt: str, wish: Wish, *, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._untaken: list[Piece] = []
        self._stopped = threading.Event()
        self._close: Callable[[], None] = lambda: None
        self._ended = ended
        self._work = self._loop.run_in_executor(pool, self._speak, speaker, prompt, wish)
        self._work.add_done_callback(self._end)

    async def take(self) -> Piece | None:
        """All that came since the last call, as one piece; None after the last. Raises what the speaker raised."""
        while not self._untaken:
            if self._work.done():
                self._work.result()
                return None
            self._news.clear()
            await self._news.wait()
        taken, self._untaken = self._untaken, []
        return Piece("".join(piece.text for piece in taken), sum(piece.tokens for piece in taken), taken[-1].finish)

    def stop(self) -> None:
        """No one wants the rest."""
        self._stopped.set()
        # Another thread may be inside: a generator says so, and ends itself at its next piece.
        with contextlib.suppress(ValueError):
            self._close()

    def _speak(self, speaker: Speaker, prompt: str, wish: Wish) -> None:
        pieces = speaker.speak(prompt, wish)
        self._close = getattr(pieces, "close", self._close)  # a plain iterator has none
        try:
            while not self._stopped.is_set() and (piece := next(pieces, None)):
                self._loop.call_soon_threadsafe(self._tell, piece)
        finally:
            self._close()

    def _tell(self, piece: Piece) -> None:
        self._untaken.append(piece)
        self._news.set()

    def _end(self, work: "asyncio.Future[None]") -> None:
        self._news.set()
        self._ended()
        if self._stopped.is_set() and not work.cancelled():
            work.exception()  # nobody will ask for it
