"""How many answers are made at once and how many wait. Knows counts; nothing of models or HTTP. One event loop uses it."""

import asyncio


class FullError(Exception):
    """As many answers wait as may."""


class Gate:
    """`parallel` answers run and `queue` wait: `room` for both, those included whose client has not read all of its answer."""

    def __init__(self, *, parallel: int, queue: int) -> None:
        self.room = parallel + queue
        self.running = 0
        self.waiting = 0
        self._admitted = 0
        self._turns = asyncio.Semaphore(parallel)

    def admit(self, answers: int) -> None:
        """Places for a request's answers. Raises FullError where there are not so many."""
        if self._admitted + answers > self.room:
            raise FullError
        self._admitted += answers

    def dismiss(self, answers: int) -> None:
        """They have been delivered, or given up."""
        self._admitted -= answers

    async def enter(self) -> None:
        """Wait for a turn, first come, first served."""
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        """A computation has ended."""
        self.running -= 1
        self._turns.release()
