"""BLEU-4 (Papineni et al. 2002; as sacrebleu defines it: Post 2018, arXiv:1804.08771). Knows tokens and counts; no files.

Our own arithmetic, for speed and because intervals need each sample's counts; the tests hold it to sacrebleu's within 1e-9.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from llmkit.metrics import ngrams, tally, tokens
from llmkit.metrics.tally import Floats, Tally

ORDERS = 4
SACREBLEU = "2.6.0"  # the version whose definition this is


def tallies(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Tally, ...]:
    """`bleu`, `length_ratio` (answers' tokens over references', as sacrebleu's `ratio`) and perhaps `bleu_13a`.

    `bleu` cuts with `zh`, which serves Chinese, English and mixed text; `13a` would take a Chinese sentence for one word,
    so it is there only if no reference holds a Han, kana or Hangul character. A corpus whose texts all have fewer than four
    tokens scores 0, as it does in sacrebleu. `samples` are sacrebleu's `sentence_bleu`.
    """
    bleu = _tally("bleu", hypotheses, references, tokens.zh_tokenizer())
    found = (bleu, Tally("length_ratio", bleu.counts[:, :2], tally.ratio, unit="ratio"))
    # By the references alone: all models that answer the same questions have the same metrics then.
    if any(map(tokens.has_single_characters, references)):
        return found
    return (*found, _tally("bleu_13a", hypotheses, references, tokens.tokenizer_13a()))


def signatures() -> dict[str, str]:
    """sacrebleu's signature text for each of `tallies`."""
    return {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:{SACREBLEU}",
        "bleu_13a": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{SACREBLEU}",
        "length_ratio": f"nrefs:1|tok:zh|avg:corpus|version:{SACREBLEU}",
    }


def _tally(name: str, hypotheses: Sequence[str], references: Sequence[str], tokenize: Callable[[str], list[str]]) -> Tally:
    vocabulary = ngrams.Vocabulary()
    given = ngrams.encode(hypotheses, tokenize, vocabulary)
    expected = ngrams.encode(references, tokenize, vocabulary)
    totals = [given.of_order(n) for n in range(1, ORDERS + 1)]
    counts = np.column_stack([given.lengths, expected.lengths, ngrams.matches(given, expected, ORDERS), *totals])
    counts = counts.astype(np.float64)
    return Tally(name, counts, partial(score, effective=False), alone=score(counts, effective=True))


def score(sums: Floats, *, effective: bool) -> Floats:
    """Counts [..., 10] → BLEU [...]: lengths of answers and references, matches and totals of 1- to 4-grams.

    Exponential smoothing: an order without a match counts as 1/2, the next such as 1/4 of a match. `effective`: only the
    orders that the answer is long enough for, sacrebleu's `effective_order`.
    """
    given, expected = sums[..., 0], sums[..., 1]
    matched, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missed = (matched == 0) & (totals > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matched)
    logs = _log(100.0 * tally.ratio(np.stack([smoothed, totals], axis=-1)))
    if effective:
        orders = np.maximum((totals > 0).sum(axis=-1), 1)
        mean = np.where(totals > 0, logs, 0.0).sum(axis=-1) / orders
    else:
        mean = logs.sum(axis=-1) / ORDERS
    short = tally.ratio(np.stack([expected, given], axis=-1))
    penalty = np.where(given < expected, np.exp(1.0 - short), 1.0)
    found = np.minimum(100.0, penalty * np.exp(mean))
    return np.where((matched > 0).any(axis=-1), found, 0.0)


def _log(values: Floats) -> Floats:
    return np.log(values, out=np.full_like(values, -np.inf), where=values > 0)
