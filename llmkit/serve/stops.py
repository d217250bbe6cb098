"""Ends an answer at a stop text. Knows strings; nothing of tokens or models.

A stop text is no part of the answer, and may come in several pieces: what could be its beginning is held back until it is
told apart.
"""

from collections.abc import Sequence


class Stops:
    """Reads an answer piece by piece; `found` tells that a stop text came, after which nothing is let through."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What of the answer so far, `piece` included, can be shown now."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        begun = self._begun(text)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def flush(self) -> str:
        """What was held back: the answer has ended."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Characters at the end of `text` that a stop text may begin with."""
        longest = max(map(len, self._texts), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._texts)), 0)
