"""Rejected answers by shuffling."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.dedup import normalise
from llmkit.data.pairs import shuffle_rejected
from llmkit.data.record import Record
from llmkit.errors import DataError


def exchange(question: str, answer: str, rejected: str | None = None) -> Record:
    return Record([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "f:1", rejected)


RECORDS = st.lists(
    st.builds(
        exchange,
        st.text("abc", min_size=1),
        st.sampled_from(["Yes", "yes!", "No", "no.", "好", "Maybe"]),
        st.none() | st.just("bad"),
    ),
    min_size=2,
    max_size=12,
)


@given(RECORDS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_each_gets_anothers_answer_whatever_the_order(records, seed: int, rng: random.Random) -> None:
    if len({normalise(record.messages[-1]["content"]) for record in records}) < 2:
        return
    paired = list(shuffle_rejected(records, seed))
    answers = {record.messages[-1]["content"] for record in records}
    for before, after in zip(records, paired, strict=True):
        assert after.messages == before.messages
        if before.rejected is not None:
            assert after == before
        else:
            assert after.rejected in answers
            assert normalise(after.rejected) != normalise(after.messages[-1]["content"])
    order = rng.sample(range(len(records)), len(records))
    assert list(shuffle_rejected([records[i] for i in order], seed)) == [paired[i] for i in order]


def test_the_seed_decides_who_gets_what() -> None:
    records = [exchange(f"question {i}", f"answer {i}") for i in range(50)]
    first, second = list(shuffle_rejected(records, 1)), list(shuffle_rejected(records, 2))
    assert first == list(shuffle_rejected(records, 1)) != second
    assert len({record.rejected for record in first}) > 20


def test_one_answer_for_all_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="same answer"):
        list(shuffle_rejected([exchange("a", "Yes"), exchange("b", "yes!")], 1))
    assert list(shuffle_rejected([], 1)) == []
