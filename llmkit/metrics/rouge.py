"""ROUGE-1/2/L (Lin 2004) and token F1 (Rajpurkar et al. 2016), as means over samples. Knows tokens and counts; no files."""

import numpy as np

from llmkit.metrics import lcs, ngrams, tally
from llmkit.metrics.ngrams import Ints, Sequences
from llmkit.metrics.tally import Floats, Tally

ROUGE_SCORE = "0.1.2"  # the version of rouge-score whose definition this is
ARTICLES = ("a", "an", "the")


def tallies(given: Sequences, expected: Sequences) -> tuple[Tally, ...]:
    """`rouge1`, `rouge2`, `rougeL` of answers and references in the tokens of `rouge_tokens`: each the mean sentence F1.

    Equal to rouge-score, given the same tokens. A pair where either side holds none (only punctuation, say) scores 0, as it
    does there.
    """
    grams = ngrams.matches(given, expected, 2)
    return (
        tally.mean("rouge1", f1(grams[:, 0], given.lengths, expected.lengths)),
        tally.mean("rouge2", f1(grams[:, 1], given.of_order(2), expected.of_order(2))),
        tally.mean("rougeL", f1(lcs.lengths(given, expected), given.lengths, expected.lengths)),
    )


def token_f1(given: Sequences, expected: Sequences, vocabulary: ngrams.Vocabulary) -> tuple[Tally, ...]:
    """`f1`: the mean F1 of tokens as SQuAD counts it, so ROUGE-1 without English articles; 0 where a side has no token."""
    articles = [vocabulary[word] for word in ARTICLES if word in vocabulary]
    given, expected = given.without(articles), expected.without(articles)
    return (tally.mean("f1", f1(ngrams.matches(given, expected, 1)[:, 0], given.lengths, expected.lengths)),)


def signatures() -> dict[str, str]:
    """The definitions, in the manner of sacrebleu's signatures."""
    return {
        "rouge": f"nrefs:1|case:lower|tok:char-cjk+alnum|stem:no|f1:mean|version:rouge-score-{ROUGE_SCORE}",
        "f1": "nrefs:1|case:lower|tok:char-cjk+alnum|articles:no|f1:mean|version:llmkit-1",
    }


def f1(matched: Ints, given: Ints, expected: Ints) -> Floats:
    """The harmonic mean of matched/given and matched/expected, 0–100, [samples]."""
    sizes = np.where((given > 0) & (expected > 0), given + expected, 0)
    return 100.0 * tally.ratio(np.stack([2 * matched, sizes], axis=-1).astype(np.float64))
