"""Near-duplicates against brute force."""

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import near

THRESHOLDS = st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])
SHORT = st.text("ab你好", min_size=1, max_size=12)


def brute_similarity(first: str, second: str) -> float:
    """Straight from the definition, without the module's functions."""

    def windows(text: str) -> set[str]:
        return {text[i : i + 3] for i in range(len(text) - 2)} or {text}

    one, two = windows(first), windows(second)
    return len(one & two) / len(one | two)


def brute_families(texts: list[str], threshold: float) -> set[frozenset[int]]:
    families = [{place} for place in range(len(texts))]
    for i, j in combinations(range(len(texts)), 2):
        if brute_similarity(texts[i], texts[j]) >= threshold:
            one = next(family for family in families if i in family)
            two = next(family for family in families if j in family)
            if one is not two:
                one |= two
                families.remove(two)
    return {frozenset(family) for family in families}


@st.composite
def edited(draw) -> list[str]:
    """A few long texts and copies of them with some characters changed: similarities all the way from 0 to 1."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    letters = "abcdefghij的一是了我不在人们有"
    texts: set[str] = set()
    for _ in range(draw(st.integers(1, 4))):
        seed = [rng.choice(letters) for _ in range(rng.randint(5, 120))]
        for _ in range(draw(st.integers(1, 12))):
            copy = list(seed)
            for _ in range(rng.randint(0, max(1, len(copy) // 8))):
                copy[rng.randrange(len(copy))] = rng.choice(letters)
            texts.add("".join(copy))
    return sorted(texts)


@given(SHORT, SHORT)
def test_similarity_is_the_jaccard_of_three_character_windows(first: str, second: str) -> None:
    assert near.jaccard(near.shingles(first), near.shingles(second)) == brute_similarity(first, second)


@given(st.lists(SHORT, unique=True, max_size=12), st.lists(SHORT, unique=True, max_size=12), THRESHOLDS)
def test_the_exact_search_finds_every_pair_of_short_texts(left, right, threshold: float) -> None:
    check_exact(left, right, threshold)


@given(edited(), THRESHOLDS, st.randoms(use_true_random=False))
def test_the_exact_search_finds_every_pair_of_edited_texts(texts, threshold: float, rng: random.Random) -> None:
    rng.shuffle(texts)
    check_exact(texts[: len(texts) // 2], texts[len(texts) // 2 :], threshold)


def check_exact(left: list[str], right: list[str], threshold: float) -> None:
    found = {(i, j): similarity for i, j, similarity in near.near_pairs_across(left, right, threshold)}
    wanted = {(i, j): brute_similarity(a, b) for i, a in enumerate(left) for j, b in enumerate(right)}
    assert found == {pair: similarity for pair, similarity in wanted.items() if similarity >= threshold}


# Derandomized: MinHash may miss a pair right at the threshold, and a test must not fail once in a thousand runs.
@settings(derandomize=True, max_examples=150, deadline=None)
@given(edited(), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]))
def test_families_are_those_of_brute_force(texts, threshold: float) -> None:
    assert {frozenset(group) for group in near.near_families(texts, threshold).groups()} == brute_families(texts, threshold)


@given(edited(), THRESHOLDS)
@settings(max_examples=50, deadline=None)
def test_families_never_join_what_brute_force_keeps_apart(texts, threshold: float) -> None:
    families = brute_families(texts, threshold)
    for group in near.near_families(texts, threshold).groups():
        assert any(family.issuperset(group) for family in families)


def test_a_bucket_of_thousands_takes_bounded_work(monkeypatch) -> None:
    rng = random.Random(1)
    stem = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(150))
    texts = sorted({stem + f"{rng.randrange(10**9):09d}" for _ in range(3000)})
    calls = 0
    exact = near.jaccard

    def counted(first: frozenset[str], second: frozenset[str]) -> float:
        nonlocal calls
        calls += 1
        return exact(first, second)

    monkeypatch.setattr(near, "jaccard", counted)
    assert len(near.near_families(texts, 0.7).groups()) == 1
    assert calls < 10 * len(texts)


def test_nothing_and_one_text_have_no_pairs() -> None:
    assert near.near_families([], 0.7).groups() == []
    assert near.near_families(["x"], 0.7).groups() == [[0]]
    assert list(near.near_pairs_across([], ["x"], 0.7)) == list(near.near_pairs_across(["x"], [], 0.7)) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_families_are_joined_whatever_the_order(pairs) -> None:
    forth, back = near.Families(10), near.Families(10)
    for first, second in pairs:
        forth.join(first, second)
    for first, second in reversed(pairs):
        back.join(second, first)
    assert forth.groups() == back.groups()
    assert all(forth.root(first) == forth.root(second) for first, second in pairs)
