"""Texts that are nearly equal, for the tests of near-duplicates."""

import random

from hypothesis import strategies as st


@st.composite
def edited_texts(draw) -> list[str]:
    """A few long texts and copies with some characters changed, in any order: similarities all the way from 0 to 1."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    letters = "abcdefghij的一是了我不在人们有"
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        seed = [rng.choice(letters) for _ in range(rng.randint(5, 120))]
        for _ in range(draw(st.integers(1, 12))):
            copy = list(seed)
            for _ in range(rng.randint(0, max(1, len(copy) // 8))):
                copy[rng.randrange(len(copy))] = rng.choice(letters)
            texts.append("".join(copy))
    rng.shuffle(texts)
    return texts
