"""Text to the tokens ROUGE counts, for Chinese, Japanese, Korean and English alike. Knows characters; no scores."""

import re

# One token per character: scripts written without spaces (Han, kana) and Korean syllables, as ROUGE work on them does.
_SINGLE_CHARACTERS = (
    "\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b"  # Han: radicals, 々, 〇, numerals
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\ufa70-\ufad9\U00016fe3\U00016ff2-\U00016ff6\U00020000-\U0003fffd"  # ideographs
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d\U0001aff0-\U0001b16f"  # kana
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa0-\uffdc"  # Hangul
)
_TOKEN = re.compile(rf"[{_SINGLE_CHARACTERS}]|[^\W_{_SINGLE_CHARACTERS}]+")


def rouge_tokens(text: str) -> list[str]:
    """Lower-case tokens: one per Han, kana or Hangul character, else runs of letters and digits.

    Punctuation, symbols and emoji are dropped. On ASCII text this equals rouge-score's default tokenizer, which itself
    drops every other script.
    """
    return _TOKEN.findall(text.lower())
