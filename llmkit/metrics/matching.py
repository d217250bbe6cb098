"""Answers that are their reference, word for word. Knows characters; no files."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from llmkit.metrics import tally
from llmkit.metrics.tally import Tally
from llmkit.metrics.tokens import SINGLE_CHARACTERS

_MARK = re.compile(r"[^\w\s]|_")
_IN_NUMBERS = ".,:/-"
_BESIDE_SINGLE = re.compile(rf"(?<=[{SINGLE_CHARACTERS}]) | (?=[{SINGLE_CHARACTERS}])")


def tallies(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Tally, ...]:
    """`exact_match`: the share of answers that equal their reference after `normalised`, 0–100."""
    pairs = zip(hypotheses, references, strict=True)
    return (tally.mean("exact_match", np.array([100.0 * (normalised(one) == normalised(two)) for one, two in pairs])),)


def signatures() -> dict[str, str]:
    """The definition, in the manner of sacrebleu's signatures."""
    return {"exact_match": "nrefs:1|case:lower|punct:in-numbers|space:one,none-beside-cjk|version:llmkit-1"}


def normalised(text: str) -> str:
    """Lower case, without punctuation, white space one space and none beside Han, kana and Hangul.

    Punctuation is Unicode's (，。「」 too), less `. , : / -` straight before a digit: 3.5 is not 35, nor -5 the same as 5.
    Symbols (+, =, emoji) stay. A text of nothing but punctuation stays as it is.
    """
    bare = _MARK.sub(_unless_punctuation, text.lower())
    return _BESIDE_SINGLE.sub("", " ".join(bare.split())) or text.strip()


def _unless_punctuation(found: re.Match[str]) -> str:
    mark = found[0]
    if not unicodedata.category(mark).startswith("P"):
        return mark
    return mark if mark in _IN_NUMBERS and found.string[found.end() : found.end() + 1].isdecimal() else ""
