"""Scores as other toolkits print them, by our own code and under their names. Knows their definitions; no files.

To compare with numbers published from those tools, and for nothing else: they count sets (a fivefold repetition scores 100),
depend on a word list, and score a sentence's BLEU by single letters. Needs jieba, the extra `llmkit[compat]`.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from llmkit.errors import MachineError, UsageError
from llmkit.metrics import lcs, ngrams, tally
from llmkit.metrics.ngrams import Ints
from llmkit.metrics.tally import Floats, Tally

NEEDS_JIEBA = "these scores need jieba, an extra"
INSTALL = "pip install 'llmkit[compat]'"
ROUGE_CHINESE = "1.0.3"  # the versions whose definitions these are
LLAMAFACTORY = "0.9.5"

# rouge-chinese's sentence ends. Its sentences matter to no score; but a line of white space becomes an empty word.
_ENDS = (
    (re.compile(r"([。！？\?])([^”’])"), r"\1\n\2"),
    (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"),
    (re.compile(r"(\…{2})([^”’])"), r"\1\n\2"),
    (re.compile(r"([。！？\?][”’])([^，。！？\?])"), r"\1\n\2"),
)
_EPSILON = 1e-8  # rouge-chinese adds it to a denominator
# jieba takes quadratic time for characters that form no word, so a text longer than any answer is cut in pieces before.
_WHOLE_CHARS = 10_000
_PIECE_CHARS = 200


def check(flavours: Sequence[str]) -> None:
    """Refuse before any work what `tallies` would refuse. Raises as `tallies`."""
    for flavour in flavours:
        if flavour not in FLAVOURS:
            raise UsageError(f"no compatibility with {flavour!r}", code="LK0722", next=f"choose one of: {', '.join(FLAVOURS)}")
    if flavours and find_spec("jieba") is None:
        raise MachineError(NEEDS_JIEBA, code="LK0907", where="--compat", next=INSTALL)


def tallies(flavour: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Tally]:
    """What `flavour` would print, by name: `llamafactory.bleu4`, `llamafactory.rouge1`, `rouge_chinese.rougeL`, …; 0–100.

    llamafactory: its `predict` and `eval_bleu_rouge.py`; BLEU-4 of single letters with nltk's smoothing `method3`, the mean
    over samples; rouge-chinese on jieba's words, each rounded to 4 decimals. rouge-chinese: the same ROUGE unrounded. An
    empty hypothesis scores 0, where rouge-chinese itself would stop. Check the texts with `text.check_pairs` before.

    Raises:
        UsageError: no such flavour.
        MachineError: jieba is not installed.
    """
    check([flavour])
    return {one.name: one for one in FLAVOURS[flavour](hypotheses, references)}


def signatures(flavour: str) -> dict[str, str]:
    """The definition behind `tallies`, in the manner of sacrebleu's signatures.

    Raises as `tallies`.
    """
    check([flavour])
    words = f"nrefs:1|case:mixed|tok:jieba-{version('jieba')}|ngrams:sets|f1:mean"
    letters = "nrefs:1|case:mixed|tok:char|smooth:nltk-method3|avg:answers"
    return {
        "llamafactory": {
            "llamafactory.bleu4": f"{letters}|round:4|version:llamafactory-{LLAMAFACTORY}",
            "llamafactory.rouge": f"{words}|round:4|version:llamafactory-{LLAMAFACTORY}",
        },
        "rouge-chinese": {"rouge_chinese.rouge": f"{words}|version:rouge-chinese-{ROUGE_CHINESE}"},
    }[flavour]


def _llamafactory(hypotheses: Sequence[str], references: Sequence[str]) -> list[Tally]:
    scores = {"bleu4": _letter_bleu(hypotheses, references), **_rouge(hypotheses, references)}
    rounded = {name: np.array([round(value, 4) for value in values.tolist()]) for name, values in scores.items()}
    return [tally.mean(f"llamafactory.{name}", values) for name, values in rounded.items()]


def _rouge_chinese(hypotheses: Sequence[str], references: Sequence[str]) -> list[Tally]:
    return [tally.mean(f"rouge_chinese.{name}", values) for name, values in _rouge(hypotheses, references).items()]


FLAVOURS: dict[str, Callable[[Sequence[str], Sequence[str]], list[Tally]]] = {
    "llamafactory": _llamafactory,
    "rouge-chinese": _rouge_chinese,
}


def _letter_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """nltk's sentence BLEU-4 of characters, white space among them, [samples]: an order without a match counts 1/2, 1/4, …"""
    given, expected = ngrams.characters(hypotheses), ngrams.characters(references)
    matched = ngrams.matches(given, expected, 4)
    totals = np.maximum(np.column_stack([given.of_order(n) for n in range(1, 5)]), 1)
    missed = matched == 0
    logs = np.log(np.where(missed, 0.5 ** np.cumsum(missed, axis=1), matched) / totals)
    short = tally.ratio(np.stack([expected.lengths, given.lengths], axis=-1).astype(np.float64))
    penalty = np.where(given.lengths > expected.lengths, 1.0, np.exp(1.0 - short))
    return 100.0 * np.where(matched[:, 0] > 0, penalty * np.exp(logs.mean(axis=1)), 0.0)


def _rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """rouge-chinese's F of jieba's words, by metric, [samples]."""
    vocabulary = ngrams.Vocabulary()
    given = ngrams.encode(hypotheses, _words, vocabulary)
    expected = ngrams.encode(references, _words, vocabulary)
    shared = ngrams.shared_types(given, expected, 2)
    kinds = [side.of_order(n) - ngrams.repeats(side, 2)[:, n - 1] for n in (1, 2) for side in (given, expected)]
    return {
        "rouge1": _f(shared[:, 0], kinds[0], kinds[1]),
        "rouge2": _f(shared[:, 1], kinds[2], kinds[3]),
        "rougeL": _f(lcs.lengths(given, expected), given.lengths, expected.lengths),
    }


def _f(matched: Ints, given: Ints, expected: Ints) -> Floats:
    precision, recall = (tally.ratio(np.stack([matched, size], axis=-1).astype(np.float64)) for size in (given, expected))
    return 100.0 * 2.0 * (precision * recall / (precision + recall + _EPSILON))


def _words(text: str) -> list[str]:
    """jieba's words as rouge-chinese sees them; none where there is nothing but white space."""
    size = _PIECE_CHARS if len(text) > _WHOLE_CHARS else _WHOLE_CHARS
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    spaced = " ".join(chain.from_iterable(map(_jieba().cut, pieces)))
    if not spaced.strip():
        return []
    for pattern, replacement in _ENDS:
        spaced = pattern.sub(replacement, spaced)
    lines = [line for line in spaced.rstrip().split("\n") if line]
    return [word for line in lines for word in " ".join(line.split()).split(" ")]


@lru_cache(maxsize=1)
def _jieba() -> Any:
    """jieba's default tokenizer. Made by hand: its own start reads a marshalled cache that anyone may have put in /tmp."""
    import jieba

    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
