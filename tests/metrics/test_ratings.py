"""Blind ratings: sides are fair and can be found again, no odd file is read, and rates and agreement are right."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.metrics import ratings
from llmkit.metrics.ratings import Ratings, Review

ANSWERS = st.dictionaries(st.text(max_size=12), st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=30)


def review(size: int = 20, *, equal: int = 0) -> Review:
    answers = {f"q{n}": (f"first {n}", f"second {n}") for n in range(size)}
    return ratings.arrange(answers | {f"same{n}": ("so", "so") for n in range(equal)}, seed=3)


def preferring(found: Review, winner: str, *, rater: str = "") -> Ratings:
    """Whoever always prefers the first or the second model, wherever it stands."""
    return Ratings(
        rater, {item: "left" if (item in found.first_left) == (winner == "first") else "right" for item in found.shown}
    )


def written(path: Path, found: Review, **change: Any) -> Path:
    entries = [{"item": item, "choice": "left", "seconds": 2.5} for item in found.shown]
    path.write_text(
        json.dumps({"format": ratings.FORMAT, "review": found.id, "rater": "小王", "ratings": entries, **change}),
        encoding="utf-8",
    )
    return path


@given(ANSWERS, st.integers())
@settings(deadline=None)
def test_sides_and_order_are_fair_and_found_again(answers: Mapping[str, tuple[str, str]], seed: int) -> None:
    found = ratings.arrange(answers, seed=seed)
    assert found == ratings.arrange(dict(reversed(answers.items())), seed=seed), "the order of the data does not matter"
    assert found.shown.keys() | found.identical == answers.keys()
    assert not found.shown.keys() & found.identical
    assert len(found.first_left) == len(found.shown) // 2
    for item, (left, right) in found.shown.items():
        assert answers[item] == ((left, right) if item in found.first_left else (right, left))


def test_another_seed_is_another_review() -> None:
    answers = {f"q{n}": ("a", "b") for n in range(20)}
    one, other = (ratings.arrange(answers, seed=seed) for seed in (0, 1))
    assert one.id != other.id
    assert one.first_left != other.first_left
    assert list(one.shown) != list(other.shown) != list(answers)


def test_what_the_page_exports_is_read(tmp_path: Path) -> None:
    found = review()
    read = ratings.read(written(tmp_path / "r.json", found), found)
    assert read == Ratings("小王", dict.fromkeys(found.shown, "left"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "no ratings"),
        ({"review": "0" * 32}, "of other answers"),
        ({"rater": 7}, '"rater" is not'),
        ({"rater": "x" * 201}, '"rater" is not'),
        ({"ratings": {}}, '"ratings" is not a list'),
        ({"ratings": [7]}, "rating 1 is not"),
        ({"ratings": [{"item": "q1", "choice": "up"}]}, "rating 1 is not"),
        ({"ratings": [{"item": "q1", "choice": ["left"]}]}, "rating 1 is not"),
        ({"ratings": [{"item": "nowhere", "choice": "left"}]}, "an item that the review does not have"),
        ({"ratings": 2 * [{"item": "q1", "choice": "left"}]}, "rating 2 rates an item a second time"),
        ({"ratings": [{"item": "q1", "choice": "left", "seconds": -1}]}, '"seconds" is not a time'),
        ({"ratings": [{"item": "q1", "choice": "left", "seconds": float("nan")}]}, '"seconds" is not a time'),
        ({"ratings": [{"item": "q1", "choice": "left", "seconds": 10**400}]}, '"seconds" is not a time'),
    ],
)
def test_a_file_that_is_not_of_this_review_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    found = review()
    with pytest.raises(DataError, match=told):
        ratings.read(written(tmp_path / "r.json", found, **change), found)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"7", b"[" * 100_000, b'{"a": 1' + b"0" * 10_000 + b"}"])
def test_what_is_no_object_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(DataError):
        ratings.read(path, review())


def test_a_file_is_bounded_and_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as stream:
        stream.truncate(ratings._LARGEST_FILE + 1)
    for odd in (path, tmp_path, tmp_path / "none.json", Path("/dev/zero")):
        with pytest.raises(DataError):
            ratings.read(odd, review())


def test_the_first_model_wins_where_it_is_preferred_on_either_side() -> None:
    found = review(20)
    for winner, rate in (("first", 1.0), ("second", 0.0)):
        told = ratings.win_rates([preferring(found, winner)], found)
        assert told["win_rate"] == rate
        assert (told["wins"], told["losses"]) == ((20, 0) if winner == "first" else (0, 20))
        assert told["agreement"] is None, "a single rater agrees with nobody"
    always_left = ratings.win_rates([Ratings("", dict.fromkeys(found.shown, "left"))], found)
    assert always_left["win_rate"] == 0.5, "who always says left prefers no model"


def test_nothing_rated_says_nothing() -> None:
    told = ratings.win_rates([Ratings("", {})], review())
    assert told["win_rate"] is told["interval"] is told["agreement"] is None


def test_ties_and_equal_answers_count_half() -> None:
    found = review(10, equal=10)
    assert ratings.win_rates([preferring(found, "first")], found)["win_rate"] == 0.75
    assert ratings.win_rates([Ratings("", dict.fromkeys(found.shown, "bad"))], found)["win_rate"] == 0.5
    half = Ratings("", dict(list(preferring(found, "first").choices.items())[:5]))
    assert ratings.win_rates([half], found)["win_rate"] == 0.75, "of a half-rated review, equal answers weigh as in the whole"


@given(st.lists(st.sampled_from(ratings.CHOICES), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_the_interval_holds_the_rate_and_never_claims_certainty(said: list[str]) -> None:
    found = review(len(said))
    told = ratings.win_rates([Ratings("", dict(zip(found.shown, said, strict=True)))], found)
    low, high = told["interval"]
    assert 0 <= low <= told["win_rate"] + 1e-9
    assert told["win_rate"] - 1e-9 <= high <= 1
    assert low < high, "a few equal ratings prove nothing for all questions"


def test_a_clean_sweep_is_as_sure_as_its_number() -> None:
    few, many = (ratings.win_rates([preferring(review(n), "first")], review(n))["interval"] for n in (5, 50))
    # Clopper and Pearson's bound for n of n: the 2.5 % quantile is 0.025 ** (1 / n).
    assert few == pytest.approx([0.025 ** (1 / 5), 1.0])
    assert many == pytest.approx([0.025 ** (1 / 50), 1.0])


def test_one_rater_is_counted_once() -> None:
    found = review()
    with pytest.raises(DataError, match="rater '小王'"):
        ratings.win_rates([preferring(found, "first", rater="小王"), preferring(found, "second", rater="小王")], found)
    with pytest.raises(DataError, match="without a name"):
        ratings.win_rates([preferring(found, "first"), preferring(found, "first")], found)
    told = ratings.win_rates([preferring(found, "first"), preferring(found, "second")], found)
    assert (told["raters"], told["win_rate"]) == (2, 0.5)
    assert told["agreement"] < 0


def test_raters_who_say_the_same_agree() -> None:
    found = review()
    first, second = (preferring(found, "first", rater=name).choices for name in "ab")
    mixed = dict(first) | dict.fromkeys(list(found.shown)[:7], "tie")
    told = ratings.win_rates([Ratings("a", mixed), Ratings("b", mixed)], found)
    assert told["agreement"] == 1
    assert ratings.win_rates([Ratings("a", mixed), Ratings("b", second)], found)["agreement"] < 1


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): two values, five values, and missing ones (".").
@pytest.mark.parametrize(
    ("observers", "alpha"),
    [
        (("0100000010", "1110010000"), 0.095),
        (("aabbdcccedda", "babbbccceddd"), 0.692),
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
)
def test_alpha_is_the_published_one(observers: tuple[str, ...], alpha: float) -> None:
    units = [[value for value in column if value != "."] for column in zip(*observers, strict=True)]
    assert ratings.krippendorff_alpha(units) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("units", [[], [["a"]], [["a", "a"], ["a", "a"]], [[], ["b"], ["a"]]])
def test_alpha_is_unknown_where_there_is_nothing_to_agree_on(units: list[list[str]]) -> None:
    assert ratings.krippendorff_alpha(units) is None
