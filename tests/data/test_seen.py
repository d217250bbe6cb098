"""The set of keys against Python's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.seen import Seen


@given(st.lists(st.lists(st.integers(0, 30) | st.integers(0, 2**64 - 1), max_size=40), max_size=12))
def test_a_key_is_new_once(batches: list[list[int]]) -> None:
    seen, known = Seen(), set()
    for batch in batches:
        fresh = seen.add(np.array(batch, dtype=np.uint64))
        for key, new in zip(batch, fresh.tolist(), strict=True):
            assert new == (key not in known)
            known.add(key)


def test_a_key_takes_eight_bytes() -> None:
    seen, rng = Seen(), np.random.default_rng(1)
    for _ in range(50):
        assert seen.add(rng.integers(0, 2**64, 4000, dtype=np.uint64)).all()
    assert sum(run.nbytes for run in seen._runs) == 50 * 4000 * 8
    assert len(seen._runs) <= 10
