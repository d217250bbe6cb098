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

    def __init__(self, words: Words) -> None:
        self._words = words
        self._before = ""  # the last character let through, for a word's left edge
        self._held = ""
        self.caught = False

    def push(self, piece: str, *, last: bool = False) -> str:
        """What of the answer so far, `piece` included, can be shown; all of it with the `last` piece."""
        if self.caught:
            return ""
        known = len(self._before)
        text = self._before + self._held + piece
        hits = self._words.find(text, known)
        sure = len(text) if last else max(known, len(text) - self._words.longest)
        if hits:
            start, end = hits[0]
            # A word at the very end may be the beginning of a longer, harmless one.
            self.caught = last or end < len(text)
            sure = start if self.caught else min(sure, start)
        shown, self._held = text[known:sure], text[sure:]
        self._before = text[sure - 1 : sure] if sure else ""
        return shown


def _find_none(text: str, begin: int = 0) -> list[sensitive.Span]:
    return []
