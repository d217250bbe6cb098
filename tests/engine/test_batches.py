"""The order of a run: balanced, reproducible, little padding."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmkit.engine.batches import layout, steps_for

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=60)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), steps=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_every_record_is_seen_as_often_as_any_other(lengths: list[int], batch_size: int, steps: int, seed: int) -> None:
    order = layout(lengths, batch_size=batch_size, steps=steps, seed=seed)
    seen = Counter(order)
    assert len(order) == batch_size * steps
    assert max(seen.values()) - min(seen[index] for index in range(len(lengths))) <= 1
    assert order == layout(lengths, batch_size=batch_size, steps=steps, seed=seed)


def test_records_of_like_length_share_a_batch() -> None:
    lengths = [index % 97 + 1 for index in range(640)]
    order = layout(lengths, batch_size=8, steps=80, seed=0)
    batches = [[lengths[index] for index in order[start : start + 8]] for start in range(0, 640, 8)]
    assert sum(max(batch) * 8 for batch in batches) < 1.15 * sum(lengths)


def test_another_seed_gives_another_order() -> None:
    assert layout([1] * 20, batch_size=4, steps=5, seed=0) != layout([1] * 20, batch_size=4, steps=5, seed=1)


def test_steps_cover_the_epochs_asked_for() -> None:
    assert steps_for(10, batch_size=4, epochs=1, max_steps=None) == 3
    assert steps_for(10, batch_size=4, epochs=0.1, max_steps=None) == 1
    assert steps_for(10, batch_size=4, epochs=9, max_steps=7) == 7


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 40))
def test_no_batch_holds_a_record_more_often_than_it_must(records: int, batch_size: int, steps: int) -> None:
    """Grouping by length must not gather the copies that several passes make of one record."""
    order = layout(range(records), batch_size=batch_size, steps=steps, seed=3)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    most = -(-batch_size // records)
    assert max(max(Counter(batch).values()) for batch in batches) <= most + 1
