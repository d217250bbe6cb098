"""Text to the tokens that metrics count, for Chinese, Japanese, Korean and English alike. Knows characters; no scores."""

import re
from collections.abc import Callable, Sequence
from itertools import chain

# One token per character: scripts written without spaces (Han, kana) and Korean syllables, as ROUGE work on them does.
SINGLE_CHARACTERS = (
    "\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b"  # Han: radicals, 々, 〇, numerals
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\ufa70-\ufad9\U00016fe3\U00016ff2-\U00016ff6\U00020000-\U0003fffd"  # ideographs
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d\U0001aff0-\U0001b16f"  # kana
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa0-\uffdc"  # Hangul
)
_TOKEN = re.compile(rf"[{SINGLE_CHARACTERS}]|[^\W_{SINGLE_CHARACTERS}]+")
_SINGLE = re.compile(rf"[{SINGLE_CHARACTERS}]")

# What sacrebleu's `zh` takes for Chinese: all of U+2001–2A6D too (arrows, “ ” …), since it spells U+20000 as two characters.
_ZH = (
    "\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb"
    "\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef"
)
_PIECE = re.compile(rf"[^\s{_ZH}]+|(?!\s)[{_ZH}]")

# mteval-v13a's rules for Western text, in the order sacrebleu applies them.
_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a point or comma, unless behind a digit
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # or before one
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def rouge_tokens(text: str) -> list[str]:
    """Lower-case tokens: one per Han, kana or Hangul character, else runs of letters and digits.

    Punctuation, symbols and emoji are dropped. On ASCII text this equals rouge-score's default tokenizer, which itself
    drops every other script.
    """
    return _TOKEN.findall(text.lower())


def has_single_characters(text: str) -> bool:
    """Whether any character is Han, kana or Hangul."""
    return _SINGLE.search(text) is not None


def zh_tokenizer() -> Callable[[str], list[str]]:
    """A function text → BLEU tokens, equal to sacrebleu's `zh` (2.6.0) and several times faster.

    Chinese characters stand alone, the rest is split as `13a` does, but for the text's ends: a final "5." stays whole.
    The function remembers the words it has met, so make one for a corpus and drop it after.
    """
    # The rules look at neighbours, and the ends of a text have none on one side.
    alone, first, inside, last = _Split("", ""), _Split("", " "), _Split(" ", " "), _Split(" ", "")

    def tokenize(text: str) -> list[str]:
        pieces = _PIECE.findall(text)
        if len(pieces) < 2:
            return [token for piece in pieces for token in alone[piece]]
        between = chain.from_iterable(map(inside.__getitem__, pieces[1:-1]))
        return [*first[pieces[0]], *between, *last[pieces[-1]]]

    return tokenize


def tokenizer_13a() -> Callable[[str], list[str]]:
    """A function text → BLEU tokens, equal to sacrebleu's `13a` (2.6.0), the default of WMT; not for Chinese.

    The function remembers the words it has met, so make one for a corpus and drop it after.
    """
    inside = _Split(" ", " ")

    def tokenize(text: str) -> list[str]:
        text = text.rstrip().replace("<skipped>", "").replace("-\n", "")
        for entity, character in _ENTITIES:
            text = text.replace(entity, character)
        return list(chain.from_iterable(map(inside.__getitem__, text.split())))

    return tokenize


class _Split(dict[str, Sequence[str]]):
    """Text without white space → its tokens by `_RULES`, between `before` and `after`: a space or the text's end."""

    def __init__(self, before: str, after: str) -> None:
        self._before, self._after = before, after

    def __missing__(self, piece: str) -> Sequence[str]:
        split = f"{self._before}{piece}{self._after}"
        for pattern, replacement in _RULES:
            split = pattern.sub(replacement, split)
        tokens = self[piece] = tuple(split.split())
        return tokens
