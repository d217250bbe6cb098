"""Dealing families to sides: shares in every stratum, and nothing that moves when data is appended."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.split import TEST, TRAIN, VALID, Shares, deal

SHARES = Shares(0.8, 0.1, 0.1)
STRATA = st.lists(st.sampled_from([("a", "zh"), ("a", "en"), ("b", "zh")]), max_size=120)


def sides(strata: list, seed: int = 1, shares: Shares = SHARES, sizes: list[int] | None = None) -> list[int]:
    groups, place = [], 0
    for size in sizes or [1] * len(strata):
        groups.append(list(range(place, place + size)))
        place += size
    held = deal(groups, strata, shares=shares, seed=seed)
    return [held.get(number, TRAIN) for number in range(len(groups))]


@given(STRATA, st.integers(0, 99))
def test_every_ten_families_of_a_stratum_give_one_to_test_and_one_to_valid(strata, seed: int) -> None:
    dealt = sides(strata, seed)
    for stratum in set(strata):
        counts = Counter(side for side, one in zip(dealt, strata, strict=True) if one == stratum)
        size = sum(counts.values())
        # A block of ten that is not full may have given its one already, and an empty side takes one from anywhere.
        assert size // 10 <= counts[TEST] <= -(-size // 10) + 1
        assert size // 10 <= counts[VALID] <= -(-size // 10) + 1


@given(STRATA, STRATA, st.integers(0, 9))
def test_data_appended_moves_nothing(strata, more, seed: int) -> None:
    # A whole block first: where blocks gave a side nothing, it takes one from train.
    strata = [("a", "zh")] * 10 + strata
    assert sides(strata + more, seed)[: len(strata)] == sides(strata, seed)


@given(st.integers(3, 200), st.integers(0, 20))
def test_no_side_with_a_share_is_empty_where_three_families_are(count: int, seed: int) -> None:
    assert set(sides([("a", "zh")] * count, seed)) == {TRAIN, VALID, TEST}


@given(st.integers(1, 12), st.integers(0, 99))
def test_few_families_leave_one_to_train_on_before_all_else(count: int, seed: int) -> None:
    assert TRAIN in sides([("a", "zh")] * count, seed)


def test_a_large_family_goes_to_train() -> None:
    assert sides([("a", "zh")] * 40, sizes=[1] * 20 + [60] * 20)[20:] == [TRAIN] * 20


def test_another_seed_draws_another_test_side() -> None:
    strata = [("a", "zh")] * 100
    assert sides(strata, 1) != sides(strata, 2)
    assert sides(strata, 1) == sides(strata, 1)


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        (Shares(0.9, 0.0, 0.1), (900, 0, 100)),
        (Shares(0.98, 0.01, 0.01), (980, 10, 10)),
        (Shares(1.0, 0.0, 0.0), (1000, 0, 0)),
        (Shares(0.75, 0.2, 0.05), (750, 200, 50)),
        (Shares(0.8, 1 / 15, 2 / 15), (800, 67, 133)),
    ],
)
def test_any_shares_are_met(shares: Shares, counts: tuple[int, int, int]) -> None:
    found = Counter(sides([("a", "zh")] * 1000, shares=shares))
    assert tuple(found[side] for side in (TRAIN, VALID, TEST)) == pytest.approx(counts, abs=1)
