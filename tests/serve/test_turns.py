"""So many at once, the others in order, and whoever leaves makes room."""

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.serve.turns import Turn, Turns


@settings(deadline=None)  # a busy machine is no failure
@given(places=st.integers(1, 4), moves=st.lists(st.integers(-8, 0), max_size=40))
def test_never_more_are_inside_than_there_are_places_and_the_line_moves_in_order(places: int, moves: list[int]) -> None:
    line, here = Turns(places), list[Turn]()
    for move in moves:
        if move == 0 or not here:
            here.append(line.join())
        else:
            here.pop(move % len(here)).leave()
        assert [turn.called.is_set() for turn in here] == [True] * min(places, len(here)) + [False] * (len(here) - places)


def test_who_leaves_the_line_while_waiting_waits_no_longer() -> None:
    line = Turns(1)
    line.join()
    waiting = line.join()
    threading.Timer(0.05, waiting.leave).start()
    started = time.monotonic()
    assert not waiting.wait()
    assert time.monotonic() - started < 5
