"""Model output against references: every text metric at once. Knows strings; nothing of models, files or recipes.

The functions are pure, and none of them cleans its input: pass a model's raw text through `clean_output` first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmkit.errors import DataError
from llmkit.metrics import bleu, chrf, matching, ngrams, rouge, tally, tokens, variety
from llmkit.metrics.tally import Tally

Says = Callable[[str], bool]

# Bounds on time and memory, far above any answer: the longest common subsequence takes their product.
MAX_ANSWER_CHARS = 2_000_000
MAX_REFERENCE_CHARS = 200_000

_SPECIAL = re.compile(
    # A turn's opening goes with the role that a template writes behind it.
    r"(?:<start_of_turn>|<\|im_start\|>|<\|start_header_id\|>)(?:(?:system|user|model|assistant|tool)(?=\n|<\|))?\n?"
    r"|<\|[^\s|<>]{1,64}\|>|<\uff5c[^\s\uff5c<>]{1,64}\uff5c>"  # <|im_end|>, <|eot_id|>; DeepSeek's full-width bars
    r"|</?s>|<(?:bos|eos|pad|unk|mask|end_of_turn|start_of_image|end_of_image|unused\d+|extra_id_\d+)>"
    r"|\[/?INST\]|<</?SYS>>"
)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Answers and their references, cut into tokens once for all metrics that need them.

    Raises:
        DataError: as `check_pairs`.
    """

    hypotheses: Sequence[str]
    references: Sequence[str]

    def __post_init__(self) -> None:
        check_pairs(self.hypotheses, self.references)

    @cached_property
    def vocabulary(self) -> ngrams.Vocabulary:
        return ngrams.Vocabulary()

    @cached_property
    def given(self) -> ngrams.Sequences:
        return ngrams.encode(self.hypotheses, tokens.rouge_tokens, self.vocabulary)

    @cached_property
    def expected(self) -> ngrams.Sequences:
        return ngrams.encode(self.references, tokens.rouge_tokens, self.vocabulary)


# Families of metrics that need nothing but texts, in the order that reports show them.
FAMILIES: Mapping[str, Callable[[Pairs], tuple[Tally, ...]]] = {
    "bleu": lambda pairs: bleu.tallies(pairs.hypotheses, pairs.references),
    "rouge": lambda pairs: rouge.tallies(pairs.given, pairs.expected),
    "chrf": lambda pairs: chrf.tallies(pairs.hypotheses, pairs.references),
    "exact_match": lambda pairs: matching.tallies(pairs.hypotheses, pairs.references),
    "f1": lambda pairs: rouge.token_f1(pairs.given, pairs.expected, pairs.vocabulary),
    "variety": lambda pairs: variety.tallies(pairs.given),
}


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one list of answers.

    `tallies`: bleu, length_ratio, bleu_13a (if no reference holds Han, kana or Hangul), rouge1, rouge2, rougeL, chrf,
    exact_match, f1, distinct1, distinct2, repetition, and refusals and sensitive if asked for.
    `signatures`: family → the exact definition; the families are bleu, bleu_13a, length_ratio, rouge, chrf, exact_match, f1,
    distinct, repetition, refusals, sensitive.
    """

    tallies: Mapping[str, Tally]
    signatures: Mapping[str, str]

    @property
    def metrics(self) -> dict[str, float]:
        """The score of all samples together, by metric."""
        return {name: one.score for name, one in self.tallies.items()}


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    is_refusal: Says | None = None,
    is_sensitive: Says | None = None,
) -> Scores:
    """Score each hypothesis against the reference at its place.

    `is_refusal`, `is_sensitive`: whether an answer refuses, or holds a listed word; their shares are metrics then.

    Raises:
        DataError: as `check_pairs`.
    """
    pairs = Pairs(hypotheses, references)
    found = [one for family in FAMILIES.values() for one in family(pairs)]
    signatures = {name: text for module in (bleu, rouge, chrf, matching, variety) for name, text in module.signatures().items()}
    for name, says in (("refusals", is_refusal), ("sensitive", is_sensitive)):
        if says is not None:
            found.append(share(name, hypotheses, says))
            signatures[name] = "avg:answers|version:llmkit-1"
    if all(one.name != "bleu_13a" for one in found):
        del signatures["bleu_13a"]
    return Scores({one.name: one for one in found}, signatures)


def share(name: str, hypotheses: Sequence[str], says: Says) -> Tally:
    """The share of answers of which `says` is true, 0–100; lower is better."""
    return tally.mean(name, np.array([100.0 * bool(says(text)) for text in hypotheses]), higher_is_better=False)


def clean_output(text: str) -> str:
    """The answer in a model's raw output: without special tokens, thoughts and outer white space.

    Special tokens are the known spellings and `<|…|>` around anything without spaces; `a < b` and `f <| x` stay.
    A thought is `<think>…</think>`, all that stands before a `</think>` whose opening was in the prompt, or the whole
    output where a thought at its start never closes.
    """
    return _without_thoughts(_SPECIAL.sub("", text)).strip()


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse what cannot be scored.

    Raises:
        DataError: the lists differ in length, are empty, or hold an empty reference or a text too long to score.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} hypotheses and {len(references)} references cannot be paired",
            code="LK0710",
            next="give one hypothesis per reference, in the same order",
        )
    if not references:
        raise DataError(
            "there are no samples to score", code="LK0710", next="check that the test split or the files are not empty"
        )
    empty = [index for index, reference in enumerate(references) if not reference.strip()]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(references)} references are empty",
            code="LK0710",
            where=f"the first is number {empty[0] + 1}",
            next="remove those samples: no score is defined for them",
        )
    _check_sizes("hypothesis", hypotheses, MAX_ANSWER_CHARS)
    _check_sizes("reference", references, MAX_REFERENCE_CHARS)


def _check_sizes(what: str, texts: Sequence[str], most: int) -> None:
    for number, text in enumerate(texts, start=1):
        if len(text) > most:
            raise DataError(
                f"a {what} of {len(text)} characters is too long to score; at most {most}",
                code="LK0710",
                where=f"{what} {number}",
                next="shorten it, or remove the sample",
            )


def _without_thoughts(text: str) -> str:
    *closed, rest = text.split("</think>")
    before = "".join(part.partition("<think>")[0] if "<think>" in part else "" for part in closed)
    if not before.strip() and rest.lstrip().startswith("<think>"):
        return ""
    return before + rest
