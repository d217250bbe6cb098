"""The split: shares, determinism, and no leak by brute force."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import split as module
from llmkit.data.near import Families
from llmkit.data.record import Record
from llmkit.data.split import Shares, split
from llmkit.errors import FidelityError

SHARES = Shares(0.8, 0.1, 0.1)


def exchange(question: str, answer: str) -> Record:
    return Record([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "f:1")


def unlike(count: int, seed: int = 1) -> list[Record]:
    """Exchanges with nothing in common."""
    rng = random.Random(seed)
    return [exchange(*("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=20)) for _ in range(2))) for _ in range(count)]


@given(st.integers(10, 400), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_shares_are_met_to_the_record_where_nothing_repeats(count: int, seed: int) -> None:
    sides = split(unlike(count), shares=SHARES, near=0.7, seed=seed)
    assert len(sides.test) == len(sides.valid) == max(1, round(0.1 * count))
    assert len(sides.train) == count - len(sides.test) - len(sides.valid)
    assert sides.families == count


@st.composite
def families(draw) -> list[Record]:
    records: dict[str, Record] = {}
    for seed, size in enumerate(draw(st.lists(st.integers(1, 12), min_size=1, max_size=40))):
        stem = unlike(1, seed)[0]
        for copy in range(size):
            record = exchange(stem.messages[0]["content"] + "!" * copy, stem.messages[1]["content"])
            records[record.id] = record
    return list(records.values())


@given(families(), st.integers(0, 9), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_split_keeps_every_record_once_leaks_nothing_and_ignores_the_order(
    brute_leaks, records, seed: int, rng: random.Random
) -> None:
    sides = split(records, shares=SHARES, near=0.7, seed=seed)
    assert sorted(record.id for side in sides[:3] for record in side) == sorted(record.id for record in records)
    assert brute_leaks(sides, 0.7) == []
    assert len(sides.train) > 0
    shuffled = rng.sample(records, len(records))
    assert split(shuffled, shares=SHARES, near=0.7, seed=seed) == sides


def test_shares_are_met_closely_among_families() -> None:
    rng = random.Random(3)
    records = []
    for seed in range(200):
        stem = unlike(1, seed)[0]
        records += [
            exchange(stem.messages[0]["content"] + "?" * i, stem.messages[1]["content"]) for i in range(rng.randint(1, 9))
        ]
    sides = split(records, shares=SHARES, near=0.7, seed=1)
    assert sides.families == 200
    assert len(sides.test) == pytest.approx(0.1 * len(records), abs=2)
    assert len(sides.valid) == pytest.approx(0.1 * len(records), abs=2)


def test_a_huge_family_goes_to_train() -> None:
    stem = unlike(1)[0]
    huge = [exchange(stem.messages[0]["content"] + "?" * i, stem.messages[1]["content"]) for i in range(60)]
    sides = split([*huge, *unlike(40, 2)], shares=SHARES, near=0.7, seed=1)
    assert {record.id for record in huge} <= {record.id for record in sides.train}
    assert (len(sides.valid), len(sides.test)) == (10, 10)


def test_another_seed_draws_another_test_side() -> None:
    records = unlike(100)
    first, second = (split(records, shares=SHARES, near=0.7, seed=seed) for seed in (1, 2))
    assert {record.id for record in first.test} != {record.id for record in second.test}


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_few_records_leave_one_to_train_on_before_all_else(count: int, sizes: tuple[int, int, int]) -> None:
    sides = split(unlike(count), shares=SHARES, near=0.7, seed=1)
    assert tuple(len(side) for side in sides[:3]) == sizes


def test_a_side_without_a_share_stays_empty() -> None:
    sides = split(unlike(20), shares=Shares(0.9, 0.0, 0.1), near=0.7, seed=1)
    assert (len(sides.train), len(sides.valid), len(sides.test)) == (18, 0, 2)


def test_a_pair_that_minhash_missed_is_found_and_kept_on_one_side(brute_leaks, monkeypatch) -> None:
    records = [unlike(1, seed)[0] for seed in range(20)]
    records += [exchange(record.messages[0]["content"], f"{record.messages[1]['content']}.") for record in records]
    monkeypatch.setattr(module, "families", lambda records, threshold: Families(len(records)))
    sides = split(records, shares=SHARES, near=0.7, seed=1)
    assert brute_leaks(sides, 0.7) == []
    assert len(sides.test) >= 1


def test_a_leak_that_cannot_be_mended_is_a_failed_proof(monkeypatch) -> None:
    monkeypatch.setattr(module, "_join", lambda *_: None)
    monkeypatch.setattr(module, "families", lambda records, threshold: Families(len(records)))
    stem = unlike(1)[0]
    records = [exchange(stem.messages[0]["content"] + "!" * i, stem.messages[1]["content"]) for i in range(10)]
    with pytest.raises(FidelityError, match="near-duplicates"):
        split(records, shares=SHARES, near=0.7, seed=1)
