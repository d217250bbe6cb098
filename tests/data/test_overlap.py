"""The exact search against brute force."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data import near, overlap
from tests.edited import edited_texts

THRESHOLDS = st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])
SHORT = st.text("ab你好,", max_size=12)


def check(left: list[str], right: list[str], threshold: float) -> None:
    found = {(one.left, one.right): one.similarity for one in overlap.Index(right, threshold).overlaps(left)}
    wanted = {}
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            one, two = near.normalise(a), near.normalise(b)
            if any(x.isalnum() for x in one) and any(x.isalnum() for x in two):
                wanted[i, j] = near.jaccard(near.shingles(one), near.shingles(two))
    assert found == {pair: similarity for pair, similarity in wanted.items() if similarity >= threshold}


@given(st.lists(SHORT, max_size=12), st.lists(SHORT, max_size=12), THRESHOLDS)
@settings(deadline=None)
def test_every_pair_of_short_texts_is_found(left, right, threshold: float) -> None:
    check(left, right, threshold)


@given(edited_texts().map(lambda texts: sorted(set(texts))), THRESHOLDS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_pair_of_edited_texts_is_found(texts, threshold: float, rng: random.Random) -> None:
    rng.shuffle(texts)
    check(texts[: len(texts) // 2], texts[len(texts) // 2 :], threshold)


def test_more_texts_than_one_batch_are_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(overlap, "BATCH", 7)
    rng = random.Random(5)
    texts = ["".join(rng.choices("abcdefgh你好的一", k=40)) for _ in range(60)]
    check(texts[:40], [text[:-1] + "x" for text in texts[20:]], 0.7)
