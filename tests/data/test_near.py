"""Shingles and MinHash against plain Python."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import near

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("abAB你好 ，。!1２", max_size=40)


def plain(text: str) -> str:
    """Letters and digits in lower case, from the definition; a few letters have no lower case of one character."""
    return "".join(low if len(low := one.lower()) == 1 else one for one in text if one.isalnum())


def windows(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)} or ({text} if text else set())


@given(TEXTS)
def test_normalised_text_is_stable_and_lower_case_without_space(text: str) -> None:
    once = near.normalise(text)
    assert near.normalise(once) == once
    assert bool(once) == bool(text.strip())
    assert plain(text) in ("", once)


def test_normalising_keeps_letters_digits_and_han() -> None:
    assert near.normalise("你好，World_2！ ¿Qué?") == "你好world2qué"
    assert near.normalise(" ？？ !") == "？？!"


@given(st.lists(TEXTS, max_size=6))
def test_shingles_are_the_three_character_windows_of_each_text(texts: list[str]) -> None:
    found = near.shingled(texts)
    for place, text in enumerate(texts):
        packed = {sum(ord(one) << (21 * i) for i, one in enumerate(window)) for window in windows(plain(text))}
        assert set(found.tokens[found.owner == place].tolist()) == packed
    assert (np.diff(found.owner) >= 0).all()


@given(TEXTS, TEXTS)
def test_similarity_is_the_jaccard_of_the_windows(first: str, second: str) -> None:
    one, two = windows(plain(first)), windows(plain(second))
    wanted = len(one & two) / len(one | two) if one and two else 0
    assert near.similarity(near.shingle_set(first), near.shingle_set(second)) == pytest.approx(wanted)
    if first and second:
        assert near.jaccard(near.shingles(first), near.shingles(first)) == 1


@given(st.lists(TEXTS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_signature_depends_on_the_text_alone(texts: list[str], rng: random.Random) -> None:
    shuffled = rng.sample(texts, len(texts))
    rows = {text: row.tolist() for text, row in zip(texts, signatures(texts), strict=True)}
    assert {text: row.tolist() for text, row in zip(shuffled, signatures(shuffled), strict=True)} == rows
    for text, row in rows.items():
        # A text with any letter fills all its bins; one without any has none.
        assert (0xFFFFFFFF in row) == (not plain(text)) == (set(row) == {0xFFFFFFFF})


def signatures(texts: list[str]) -> np.ndarray:
    return near.signatures(near.shingled(texts), len(texts))


@pytest.mark.parametrize("length", [8, 20, 100, 400])
def test_the_share_of_equal_bins_estimates_the_similarity(length: int) -> None:
    rng = random.Random(length)
    letters = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能abcdefgh"
    errors = []
    for _ in range(60):
        text = rng.choices(letters, k=length)
        other = list(text)
        for _ in range(rng.randint(1, max(1, length // 8))):
            other[rng.randrange(length)] = rng.choice(letters)
        pair = ["".join(text), "".join(other)]
        one, two = signatures(pair)
        true = near.similarity(near.shingle_set(pair[0]), near.shingle_set(pair[1]))
        errors.append(float((one == two).mean()) - true)
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.12


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("length", [30, 60, 200])
def test_bands_meet_all_but_a_few_pairs_at_the_threshold(threshold: float, length: int) -> None:
    rng = random.Random(7)
    letters = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能"
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 150:
        text = rng.choices(letters, k=length)
        other = list(text)
        while near.jaccard(near.shingles("".join(text)), near.shingles("".join(other))) > threshold + 0.04:
            other[rng.randrange(length)] = rng.choice(letters)
        if near.jaccard(near.shingles("".join(text)), near.shingles("".join(other))) >= threshold:
            pairs.append(("".join(text), "".join(other)))
    keys = near.bands(signatures([text for pair in pairs for text in pair]), threshold)
    assert (keys[0::2] == keys[1::2]).any(axis=1).mean() >= 0.99


def test_a_text_without_letters_has_no_bands() -> None:
    assert not near.bands(signatures(["！？ 😀", ""]), 0.8).any()
