"""How varied answers are, without their references: distinct-n and repetition. Knows tokens and counts; no files."""

import numpy as np

from llmkit.metrics import ngrams, tally
from llmkit.metrics.ngrams import Sequences
from llmkit.metrics.tally import Floats, Tally

REPEATED = 4  # the n of repetition


def tallies(given: Sequences) -> tuple[Tally, ...]:
    """`distinct1`, `distinct2` and `repetition` of answers in the tokens of `rouge_tokens`, 0–100.

    distinct-n (Li et al. 2016, arXiv:1510.03055): different n-grams of all answers over all tokens. It falls as the corpus
    grows, so compare it on the same number of answers only. repetition (seq-rep-4, Welleck et al. 2020, arXiv:1908.04319):
    the share of an answer's 4-grams that stood in it before, the mean over answers; one under four tokens has none.
    """
    again = ngrams.repeats(given, REPEATED)
    of_repeated = np.stack([again[:, REPEATED - 1], given.of_order(REPEATED)], axis=-1).astype(np.float64)
    return (
        _distinct(given, 1, again[:, 0]),
        _distinct(given, 2, again[:, 1]),
        tally.mean("repetition", tally.percent(of_repeated), higher_is_better=False),
    )


def signatures() -> dict[str, str]:
    """The definitions, in the manner of sacrebleu's signatures."""
    return {
        "distinct": "case:lower|tok:char-cjk+alnum|n:1,2|den:tokens|avg:corpus|version:llmkit-1",
        "repetition": f"case:lower|tok:char-cjk+alnum|n:{REPEATED}|avg:answers|version:llmkit-1",
    }


def _distinct(given: Sequences, n: int, again: ngrams.Ints) -> Tally:
    kinds, own = ngrams.types(given, n)
    tokens, samples = int(given.lengths.sum()), len(given.lengths)
    point = _share(np.array(kinds), np.array(tokens))
    without = _share(kinds - own, tokens - given.lengths)
    # Jackknife pseudo-values, moved so that their mean is the score: its bias correction would extrapolate to a corpus
    # that has no end.
    pseudo = samples * point - (samples - 1) * without
    pseudo += point - pseudo.mean()
    return Tally(
        f"distinct{n}",
        np.column_stack([pseudo, np.ones(samples)]),
        tally.ratio,
        point=float(point),
        alone=_share(given.of_order(n) - again, given.lengths),
    )


def _share(kinds: ngrams.Ints, tokens: ngrams.Ints) -> Floats:
    return tally.percent(np.stack([kinds, tokens], axis=-1).astype(np.float64))
