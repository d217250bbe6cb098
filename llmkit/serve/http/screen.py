"""Keeps listed words out of an answer that comes in pieces. Knows the rules of `data.sensitive`; nothing of tokens or HTTP."""

from collections.abc import Sequence
from pathlib import Path

from llmkit.data import sensitive


class Words:
    """The user's lists, read once. Without a list nothing is found and nothing held back.

    Raises:
        DataError: a list that cannot be read, is not UTF-8 or holds no word.
    """

    def __init__(self, lists: Sequence[Path]) -> None:
        self.find, self.longest = sensitive.searcher(lists) if lists else (_find_none, 0)

    def found_in(self, text: str) -> bool:
        return bool(self.find(text))


class Screen:
    """One answer's: what is let through never holds a listed word, and ends before the first; `caught` tells that it did.

    As many characters are held back as the longest word has: whether a word stands there shows by then, and by the
    character after it.
    """

    def __init__(self, words: Words, *, before: str = "") -> None:
        """`before`: what the model goes on from; a word may begin there."""
        self._words = words
        # Nothing that a word could begin in: with it, the character of its left edge.
        self._before = before[-words.longest - 1 :]
        self._held = ""
        self.caught = False

    def push(self, piece: str, *, last: bool = False) -> str:
        """What of the answer so far, `piece` included, can be shown; all of it with the `last` piece."""
        if self.caught:
            return ""
        known = len(self._before)
        text = self._before + self._held + piece
        # The first character of a cut text is there as an edge alone.
        whole = known <= self._words.longest
        hits = [hit for hit in self._words.find(text, 0 if whole else 1) if hit[1] > known]
        sure = len(text) if last else max(known, len(text) - self._words.longest)
        if hits:
            start, end = hits[0]
            # A word at the very end may be the beginning of a longer, harmless one.
            self.caught = last or end < len(text)
            sure = max(known, start if self.caught else min(sure, start))
        shown, self._held = text[known:sure], text[sure:]
        self._before = text[max(0, sure - self._words.longest - 1) : sure]
        return shown


def _find_none(text: str, begin: int = 0) -> list[sensitive.Span]:
    return []
