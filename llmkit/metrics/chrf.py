"""chrF (Popović 2015, sacrebleu's default: six character orders, no words, β = 2). Knows characters and counts; no files.

Our own arithmetic, for speed and because intervals need each sample's counts; the tests hold it to sacrebleu's within 1e-9.
"""

from collections.abc import Sequence

import numpy as np

from llmkit.metrics import ngrams, tally
from llmkit.metrics.tally import Floats, Tally

ORDERS = 6
BETA_SQUARED = 4
SACREBLEU = "2.6.0"  # the version whose definition this is


def tallies(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Tally, ...]:
    """`chrf`; white space does not count, `samples` are sacrebleu's `sentence_chrf`."""
    given = ngrams.characters(["".join(text.split()) for text in hypotheses])
    expected = ngrams.characters(["".join(text.split()) for text in references])
    wanted = np.column_stack([expected.of_order(n) for n in range(1, ORDERS + 1)])
    offered = np.column_stack([given.of_order(n) for n in range(1, ORDERS + 1)])
    # As in sacrebleu: an order that the reference is too short for costs the answer nothing.
    offered[wanted == 0] = 0
    counts = np.concatenate([offered, wanted, ngrams.matches(given, expected, ORDERS)], axis=1)
    return (Tally("chrf", counts.astype(np.float64), score),)


def signatures() -> dict[str, str]:
    """sacrebleu's signature text."""
    return {"chrf": f"nrefs:1|case:mixed|eff:yes|nc:{ORDERS}|nw:0|space:no|version:{SACREBLEU}"}


def score(sums: Floats) -> Floats:
    """Counts [..., 18] → chrF [...]: six orders' n-grams of answers, of references, and matches."""
    offered, wanted, matched = (sums[..., ORDERS * part : ORDERS * (part + 1)] for part in range(3))
    orders = np.maximum(((offered > 0) & (wanted > 0)).sum(axis=-1), 1)
    precision = tally.ratio(np.stack([matched, offered], axis=-1)).sum(axis=-1) / orders
    recall = tally.ratio(np.stack([matched, wanted], axis=-1)).sum(axis=-1) / orders
    both = np.stack([(1 + BETA_SQUARED) * precision * recall, BETA_SQUARED * precision + recall], axis=-1)
    return tally.percent(both)
