"""How long every text metric with intervals takes beside sacrebleu + rouge-score without, the same pairs in one run.

    python tests/benchmarks/bench_metrics.py [PAIRS]

10,000 pairs of 100 tokens, half Chinese and half English. rouge-score gets the same tokens, since its own tokenizer would
skip all Chinese and win by doing nothing. Rounds alternate, so that a busy machine slows both; the best of each counts.
"""

import random
import sys
from time import perf_counter

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from llmkit.metrics import bootstrap
from llmkit.metrics.text import score
from llmkit.metrics.tokens import rouge_tokens

PAIRS = 10_000
ROUNDS = 2
TOKENS = 100
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 2_000)] + ["，", "。"] * 100
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def make_pairs(pairs: int, seed: int) -> tuple[list[str], list[str]]:
    """Half Chinese, half English, 100 tokens each, frequent ones more often (Zipf); hypotheses change a third."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(LETTERS, range(26, 0, -1), k=rng.randint(1, 9))) for _ in range(5_000)]
    words[::25] = [word + "," for word in words[::25]]
    hypotheses, references = [], []
    for index in range(pairs):
        units, joint = (CHARACTERS, "") if index % 2 else (words, " ")
        reference = [units[int(len(units) ** rng.random()) - 1] for _ in range(TOKENS)]
        changed = [unit if rng.random() > 1 / 3 else units[int(len(units) ** rng.random()) - 1] for unit in reference]
        hypotheses.append(joint.join(changed))
        references.append(joint.join(reference))
    return hypotheses, references


def ours(hypotheses: list[str], references: list[str]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    scores = score(hypotheses, references)
    return scores.metrics, bootstrap.intervals(list(scores.tallies.values()))


class Tokenizer:
    def tokenize(self, text: str) -> list[str]:
        return rouge_tokens(text)


def peers(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=Tokenizer())
    each = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh", force=True).score,
        **{name: 100 * sum(one[name].fmeasure for one in each) / len(each) for name in ROUGE_TYPES},
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


def main(pairs: int) -> None:
    mine, theirs = [], []
    for seed in range(ROUNDS):
        # Fresh texts each time: sacrebleu's tokenizer remembers what it has seen, and the first caller would pay for both.
        texts = make_pairs(pairs, 2 * seed)
        start = perf_counter()
        found, intervals = ours(*texts)
        mine.append(perf_counter() - start)
        fresh = make_pairs(pairs, 2 * seed + 1)
        start = perf_counter()
        peers(*fresh)
        theirs.append(perf_counter() - start)
    expected = peers(*texts)
    assert all(abs(found[name] - expected[name]) < 1e-9 for name in expected), (found, expected)
    assert set(intervals) == set(found)
    print(f"{len(found)} metrics with intervals, {pairs} pairs:  {min(mine):.2f} s")
    print(f"sacrebleu + rouge-score, 5 metrics:  {min(theirs):.2f} s")
    print(f"ratio (ours / theirs):  {min(mine) / min(theirs):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
