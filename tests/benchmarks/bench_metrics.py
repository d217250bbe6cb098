"""How long `score` takes beside sacrebleu + rouge-score, the same 2,000 pairs in one run.

    python tests/benchmarks/bench_metrics.py

rouge-score gets the same tokens, since its own tokenizer would skip all Chinese and win by doing nothing.
Rounds alternate, so that a busy machine slows both; the best round of each counts.
"""

import random
from time import perf_counter

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from llmkit.metrics.text import ROUGE_TYPES, score
from llmkit.metrics.tokens import rouge_tokens

PAIRS = 2_000
ROUNDS = 3
CHARACTERS = "今天天气很好我们去公园散步吧他说这个模型学会了回答问题但是还不够快"
WORDS = ["the", "model", "answers", "a", "question", "about", "weather", "and", "then", "asks", "another", "one,", "quickly."]


class Tokenizer:
    def tokenize(self, text: str) -> list[str]:
        return rouge_tokens(text)


def make_pairs(seed: int) -> tuple[list[str], list[str]]:
    """Half Chinese (10–80 characters), half English (5–40 words); hypotheses change a third."""
    rng = random.Random(seed)
    hypotheses, references = [], []
    for index in range(PAIRS):
        units, joint, low = (list(CHARACTERS), "", 10) if index % 2 else (WORDS, " ", 5)
        reference = [rng.choice(units) for _ in range(rng.randint(low, 8 * low))]
        hypotheses.append(joint.join(unit if rng.random() > 1 / 3 else rng.choice(units) for unit in reference))
        references.append(joint.join(reference))
    return hypotheses, references


def peers(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=Tokenizer())
    each = [scorer.score(reference, hypothesis) for hypothesis, reference in zip(hypotheses, references, strict=True)]
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh", force=True).score,
        **{name: 100 * sum(one[name].fmeasure for one in each) / len(each) for name in ROUGE_TYPES},
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


def main() -> None:
    ours, theirs = [], []
    for seed in range(ROUNDS):
        # Fresh texts each time: sacrebleu's tokenizer remembers what it has seen, and the first caller would pay for both.
        hypotheses, references = make_pairs(2 * seed)
        start = perf_counter()
        mine = score(hypotheses, references).metrics
        ours.append(perf_counter() - start)
        hypotheses, references = make_pairs(2 * seed + 1)
        start = perf_counter()
        peers(hypotheses, references)
        theirs.append(perf_counter() - start)
    expected = peers(*make_pairs(2 * (ROUNDS - 1)))
    assert all(abs(mine[name] - expected[name]) < 1e-9 for name in expected), (mine, expected)
    print(f"score, {PAIRS} pairs:            {min(ours):.2f} s")
    print(f"sacrebleu + rouge-score:       {min(theirs):.2f} s")
    print(f"ratio (ours / theirs):         {min(ours) / min(theirs):.2f}")


if __name__ == "__main__":
    main()
