"""Lets so many in at once and the others wait in order. Knows threads; nothing of what is done inside."""

import threading
from collections import deque


class Turns:
    """First come, first served."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.RLock()  # the garbage collector may leave for somebody, anywhere

    def join(self) -> "Turn":
        """A place in the line, or inside where one is free."""
        turn = Turn(self)
        with self._lock:
            if self._free:
                self._free -= 1
                turn.called.set()
            else:
                self._waiting.append(turn.called)
        return turn

    def _leave(self, turn: "Turn") -> None:
        with self._lock:
            if turn.left:
                return
            turn.left = True
            if turn.called not in self._waiting:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1
                return
            self._waiting.remove(turn.called)
        turn.called.set()


class Turn:
    """`wait` until it is called; `left` is true after `leave`, which may come from another thread and ends the wait."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.called = threading.Event()
        self.left = False

    def wait(self) -> bool:
        """Whether it came inside; False where it left the line meanwhile."""
        self.called.wait()
        return not self.left

    def leave(self) -> None:
        self._turns._leave(self)
