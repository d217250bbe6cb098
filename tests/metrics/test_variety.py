"""distinct-n and repetition against their definitions, and the pseudo-values behind distinct-n's intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.metrics import ngrams, variety
from llmkit.metrics.tally import Tally
from llmkit.metrics.tokens import rouge_tokens

TEXTS = st.lists(
    st.lists(st.sampled_from(["the", "cat", "好", "天", "sat", "。"]), max_size=12).map(" ".join), min_size=1, max_size=7
)


def measure(texts: list[str]) -> dict[str, Tally]:
    return {one.name: one for one in variety.tallies(ngrams.encode(texts, rouge_tokens, ngrams.Vocabulary()))}


def windows(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct(tokens: list[list[str]], n: int) -> float:
    total = sum(map(len, tokens))
    return 100 * len({gram for text in tokens for gram in windows(text, n)}) / total if total else 0


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_any_texts_have_the_variety_of_the_definitions(texts: list[str]) -> None:
    found, tokens = measure(texts), [rouge_tokens(text) for text in texts]
    for n in (1, 2):
        one = found[f"distinct{n}"]
        assert one.score == pytest.approx(distinct(tokens, n))
        assert one.samples == pytest.approx([distinct([text], n) for text in tokens])
        # The sum of counts gives the score too, so a bootstrap of them is centred on it.
        assert float(one.value(one.counts.sum(axis=0))) == pytest.approx(one.score, abs=1e-9)
        without = np.array([distinct(tokens[:i] + tokens[i + 1 :], n) for i in range(len(tokens))])
        moved = one.counts[:, 0] + (len(tokens) - 1) * without
        assert moved == pytest.approx(np.full(len(tokens), moved[0]))
    shares = [1 - len(set(grams)) / len(grams) if (grams := windows(text, 4)) else 0 for text in tokens]
    assert found["repetition"].samples == pytest.approx([100 * share for share in shares])
    assert found["repetition"].score == pytest.approx(100 * np.mean(shares))


@pytest.mark.parametrize("text", ["我不知道" * 10, "I do not know. " * 10])
def test_a_model_that_loops_is_seen_in_chinese_and_in_english(text: str) -> None:
    found = measure([text, "一个普通的回答 with no loop in it at all"])
    assert found["repetition"].samples[0] > 85
    assert found["repetition"].samples[1] == 0
    assert not found["repetition"].higher_is_better
    assert found["distinct1"].samples[0] == 10
