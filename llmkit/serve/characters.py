"""Turns an answer's tokens into text as they come. Knows tokenizers; nothing of models.

A Chinese character or an emoji may take several tokens: nothing is said until it is whole. All that was said, put together,
is what the tokenizer makes of the whole answer; but where bytes break off in the middle of a character, some tokenizers take
back whole ones before it, which have been said.
"""

from typing import Any

_HALF = "\ufffd"  # what a tokenizer makes of a part of a character
# After so many tokens that end in a half, these are no halves: the model says this very sign, or broken bytes.
_LONGEST = 256


class Characters:
    """Reads the token ids of one answer; special tokens are not shown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = ""
        self._start = 0  # where the tokens that are decoded again begin: a space depends on what stands before it
        self._read = 0

    def push(self, token: int) -> str:
        """What can be said now."""
        self._ids.append(token)
        new = self._unsaid()
        if not new or (new.endswith(_HALF) and len(self._ids) - self._read < _LONGEST):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._said += new
        return new

    def flush(self) -> str:
        """What is left when the answer has ended: a half of a character, as U+FFFD."""
        whole = self._text(self._ids)
        return whole[len(self._said) :] if whole.startswith(self._said) else self._unsaid()

    def _unsaid(self) -> str:
        """The text of the tokens after the last that were said."""
        before, text = self._text(self._ids[self._start : self._read]), self._text(self._ids[self._start :])
        # Broken bytes have taken back what was said: go on without looking at it.
        return text[len(before) :] if text.startswith(before) else self._text(self._ids[self._read :])

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
