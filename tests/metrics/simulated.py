"""Models that answer like a reference with noise: two equally good ones, and one that is worse by a known amount.

Texts are built of real dialogues, zh and en, and scored once; a simulated evaluation then draws rows of their statistics.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.metrics.tally import Tally
from llmkit.metrics.text import score

METRICS = ("bleu", "rougeL", "chrf")
Tallies = Mapping[str, Tally]


@dataclass(frozen=True)
class Pool:
    """Tallies of `size` answers each: `model` and `rival` are equally good; `worse` answers with more noise."""

    model: Tallies
    rival: Tallies
    worse: Tallies
    size: int


@cache
def pool(parts: tuple[int, int] = (2, 5), size: int = 3000) -> Pool:
    """Answers of `parts` sentences: (2, 5) are 55 tokens long on average, (1, 1) are 16."""
    corpus = pytest.importorskip("chatterbot_corpus")
    texts = _sentences(corpus.__path__[0])
    rng = random.Random(1)
    references = [" ".join(rng.choices(texts[index % 2], k=rng.randint(*parts))) for index in range(size)]
    words = [_words(" ".join(texts[index])) for index in range(2)]
    # Models do not fail evenly: some prompts they answer word for word, some not at all.
    noise = [rng.betavariate(1.2, 1.2) for _ in references]

    def model(more: float) -> Tallies:
        answers = [
            _noisy(reference, min(1.0, amount + more), words[index % 2], rng)
            for index, (reference, amount) in enumerate(zip(references, noise, strict=True))
        ]
        tallies = score(answers, references).tallies
        return {name: tallies[name] for name in METRICS}

    return Pool(model(0), model(0), model(0.06), size)


def equal_pair(pool: Pool, samples: int, rng: np.random.Generator, *, same: float = 0.0) -> tuple[Tallies, Tallies]:
    """An evaluation of two models between which there is no difference; the share `same` of the answers is equal."""
    rows = rng.integers(pool.size, size=samples)
    # Who of the two gave which answer is tossed for: not even the pool's own chance difference is left.
    swapped = rng.random(samples) < 0.5
    rivals = _where(rng.random(samples) < same, _rows(pool.model, rows), _rows(pool.rival, rows))
    ours = _rows(pool.model, rows)
    return _where(swapped, ours, rivals), _where(swapped, rivals, ours)


def unequal_pair(pool: Pool, samples: int, rng: np.random.Generator, *, points: float) -> tuple[Tallies, Tallies]:
    """An evaluation of a model and of one that is worse by so many points of BLEU in the long run."""
    rows = rng.integers(pool.size, size=samples)
    spoilt = rng.random(samples) < _spoilt_share(pool.size, points)
    return _rows(pool.model, rows), _where(spoilt, _rows(pool.worse, rows), _rows(pool.rival, rows))


@cache
def _spoilt_share(size: int, points: float) -> float:
    """The share of answers to take from the worse model."""
    made, low, high = pool(size=size), 0.0, 1.0
    order = np.random.default_rng(0).random(size)
    for _ in range(20):
        share = (low + high) / 2
        mixed = _where(order < share, made.worse, made.rival)["bleu"].score
        low, high = (share, high) if made.model["bleu"].score - mixed < points else (low, share)
    return low


def _rows(tallies: Tallies, rows: NDArray[np.int64]) -> Tallies:
    return {name: replace(one, counts=one.counts[rows], alone=None) for name, one in tallies.items()}


def _where(chosen: NDArray[np.bool_], one: Tallies, other: Tallies) -> Tallies:
    return {
        name: replace(one[name], counts=np.where(chosen[:, None], one[name].counts, other[name].counts), alone=None)
        for name in one
    }


def _sentences(folder: str) -> tuple[list[str], list[str]]:
    from pathlib import Path

    import yaml

    found: tuple[list[str], list[str]] = ([], [])
    for kind, language in enumerate(("english", "chinese")):
        for path in sorted(Path(folder, "data", language).glob("*.yml")):
            said = yaml.safe_load(path.read_text("utf-8")).get("conversations", [])
            found[kind].extend(str(text) for dialogue in said for text in dialogue[1:] if len(str(text)) > 5)
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]|[A-Za-z0-9']+|[^\w\s]", text)


def _noisy(text: str, amount: float, words: list[str], rng: random.Random) -> str:
    """Each word is replaced, left out or doubled by another with a chance of `amount`."""
    said: list[str] = []
    for word in _words(text):
        chance = rng.random()
        if chance >= amount:
            said.append(word)
        elif chance < 0.6 * amount:
            said.append(rng.choice(words))
        elif chance < 0.8 * amount:
            said += [word, rng.choice(words)]
    return "".join(f" {word}" if word.isascii() and word[0].isalnum() else word for word in said).strip()
