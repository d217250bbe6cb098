"""Makes a conversation that is too long fit. Knows exchanges and characters; nothing of tokens: `fits` decides.

An exchange is what the user says and the answers to it; a conversation is its system prompt and its exchanges. Both ways keep
the system prompt, and neither cuts an answer: one that does not fit by itself is lost, which the caller counts.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmkit.engine.templates import Message

Messages = Sequence[Message]
Fits = Callable[[list[Message]], bool]

_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)


class Pieces(NamedTuple):
    """What is left of a conversation: one piece or several, or none. `lost`: an answer to learn is in none of them."""

    items: list[list[Message]]
    lost: bool


class _Parts(NamedTuple):
    head: list[Message]
    exchanges: list[list[Message]]


def truncate_left(messages: Messages, fits: Fits) -> Pieces:
    """Drop the oldest exchanges, then cut the beginning of the last one's first user message, until `fits`.

    Of the exchanges as many stay as fit; of the user message as many whole characters, and at least one.
    """
    head, exchanges = _parts(messages)
    if not exchanges:
        return Pieces([], lost=True)

    def last(count: int) -> list[Message]:
        return [*head, *_flat(exchanges[len(exchanges) - count :])]

    # What has no answer is gone by now, so that all of them may fit.
    kept = _most(len(exchanges), lambda count: fits(last(count)))
    if kept:
        return Pieces([last(kept)], lost=False)
    cut = _cut_user(head, exchanges[-1], fits)
    return Pieces([cut] if cut else [], lost=cut is None)


def split(messages: Messages, fits: Fits) -> Pieces:
    """Several conversations at exchange boundaries, each as long as `fits` allows and each opening with the system prompt."""
    head, exchanges = _parts(messages)
    items, lost, start = [], not exchanges, 0
    while start < len(exchanges):
        first = start
        count = _most(len(exchanges) - first, lambda size: fits([*head, *_flat(exchanges[first : first + size])]))  # noqa: B023
        if count:
            items.append([*head, *_flat(exchanges[first : first + count])])
        else:
            lost = True
        start += max(count, 1)
    return Pieces(items, lost)


def last_only(pieces: Pieces, messages: Messages) -> Pieces:
    """Of a split conversation, the piece that ends on its last answer."""
    answers = [message for message in messages if message["role"] == "assistant"]
    found = [piece for piece in pieces.items[-1:] if answers and piece[-1] is answers[-1]]
    return Pieces(found, lost=not found)


def character_starts(text: str) -> list[int]:
    """Where a whole character begins: not at a combining mark, nor inside an emoji, a flag or a CR LF."""
    starts, flags = [], 0
    for index, letter in enumerate(text):
        before = text[index - 1] if index else ""
        flags = flags + 1 if ord(letter) in _FLAG_LETTERS else 0
        if not ((index and _continues(letter, before)) or (flags and flags % 2 == 0)):
            starts.append(index)
    return starts


def _continues(letter: str, before: str) -> bool:
    code = ord(letter)
    if letter == _JOINER or code in _SKIN_TONES or code in _TAGS or unicodedata.category(letter).startswith("M"):
        return True
    return before == _JOINER or (before == "\r" and letter == "\n")


def _parts(messages: Messages) -> _Parts:
    """The system prompt and the exchanges, of those only what leads up to an answer."""
    size = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    exchanges: list[list[Message]] = []
    answered = True
    for message in messages[size:]:
        is_answer = message["role"] == "assistant"
        if (answered and not is_answer) or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
        answered = is_answer
    if exchanges and not answered:
        exchanges.pop()
    return _Parts(list(messages[:size]), exchanges)


def _cut_user(head: list[Message], exchange: list[Message], fits: Fits) -> list[Message] | None:
    place = next((index for index, message in enumerate(exchange) if message["role"] == "user"), None)
    if place is None:
        return None
    text = exchange[place]["content"]
    starts = [start for start in character_starts(text) if start and not text[start].isspace()]

    def cut(start: int) -> list[Message]:
        return [*head, *exchange[:place], {**exchange[place], "content": text[start:]}, *exchange[place + 1 :]]

    kept = _most(len(starts), lambda count: fits(cut(starts[-count])))
    return cut(starts[-kept]) if kept else None


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1 … limit that fits, 0 if 1 does not. Where fitting is not quite monotone, one that fits."""
    low, high = 0, 1
    while high <= limit and fits(high):  # from below: what is kept is mostly small, and a large try costs most
        low, high = high, high * 2
    return low + bisect_left(range(low + 1, min(high, limit + 1)), True, key=lambda size: not fits(size))


def _flat(exchanges: Sequence[list[Message]]) -> list[Message]:
    return [message for exchange in exchanges for message in exchange]
