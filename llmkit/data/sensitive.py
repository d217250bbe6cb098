"""Sensitive words in dialogues, from the user's own lists. Knows how words sit in text; ships no list and no opinion.

A word that begins or ends with a letter or digit of an alphabet (Latin, Greek, Cyrillic, Arabic, …) must begin or end there
in the text too: "ass" is not in "class". Han, kana, Hangul and Thai words match anywhere. Case does not matter, nor
full-width letters and digits.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from llmkit.data.filters import Changed, Rejection, Rule, Verdict
from llmkit.data.record import Message, Record
from llmkit.errors import DataError

Action = Literal["drop", "mask", "count"]
Span = tuple[int, int]
Finder = Callable[[str], list[Span]]

_CHUNK = 1 << 16  # characters searched at a time: bounds the candidates held at once
_NAMED_CHARS = 20  # of a word in a rejection's detail
_ALPHABETS_END = "\u0e00"  # from Thai on, scripts do not part words by spaces (Hangul does, but glues particles on)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WIDE = re.compile("[０-９ａ-ｚ]")
_NARROW = {code: code - 0xFEE0 for code in (*range(ord("０"), ord("９") + 1), *range(ord("ａ"), ord("ｚ") + 1))}


def sensitive(words: Sequence[Path], *, action: Action) -> Rule:
    """A rule that masks, drops or counts listed words in every text of a record, a rejected answer among them.

    `words`: UTF-8 files, one word a line; blank lines and lines that begin with # are skipped. Of overlapping words the
    leftmost counts, and of those the longest. mask: each character of a hit becomes *; mask and count give
    Changed.found {"sensitive": hits}. drop: Rejection "sensitive", the detail names the first word. A record without a hit
    is returned as it is. The search is Aho–Corasick: one pass, whatever the number of words.

    Raises:
        DataError: a list that cannot be read, is not UTF-8 or holds no word.
    """
    find = _finder([word for path in words for word in _listed(path)])

    def judge(record: Record) -> Verdict:
        texts = [message["content"] for message in record.messages]
        if record.rejected is not None:
            texts.append(record.rejected)
        # Words hold no line feed, so none is found across two texts.
        joined = "\n".join(texts)
        hits = find(joined)
        if not hits:
            return record
        if action == "drop":
            return Rejection("sensitive", _told(joined, hits))
        return Changed(_masked(record, joined, hits) if action == "mask" else record, {"sensitive": len(hits)})

    return judge


def _listed(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            "the word list is not UTF-8", where=f"{path}:{line}", next=f"convert it, as `iconv -f gb18030 -t utf-8 {path.name}`"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read the word list: {error.strerror}", where=str(path), next="mend the path in sensitive.words"
        ) from None
    lines = [line.strip() for line in text.split("\n")]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError("the word list holds no word", where=str(path), next="write one word a line, or leave the list out")
    return found


def _finder(words: Sequence[str]) -> Finder:
    """A function text → its hits [(start, end)], in order and apart."""
    from ahocorasick_rs import AhoCorasick, MatchKind

    patterns = list(dict.fromkeys(_folded(word) for word in words))
    # All matches, not the leftmost-longest: where "class war" fails at its edges, "class" may still stand.
    automaton = AhoCorasick(patterns, matchkind=MatchKind.Standard)
    longest = max(map(len, patterns), default=0)

    def candidates(text: str) -> Iterator[Span]:
        for begin in range(0, len(text), _CHUNK):
            piece = text if len(text) <= _CHUNK else text[begin : begin + _CHUNK + longest - 1]
            found = [
                (start, -end) for _, start, end in automaton.find_matches_as_indexes(piece, overlapping=True) if start < _CHUNK
            ]
            for start, minus_end in sorted(found):
                yield begin + start, begin - minus_end

    def find(text: str) -> list[Span]:
        folded = _folded(text)
        hits: list[Span] = []
        done = 0
        for start, end in candidates(folded):
            if start >= done and _stands_free(folded, start, end):
                hits.append((start, end))
                done = end
        return hits

    return find


def _folded(text: str) -> str:
    """`text` without differences of case and width, at the same length: places in it are places in `text`."""
    # İ alone grows in lower case; a final ς depends on its neighbours.
    text = text.replace("İ", "i").lower().replace("ς", "σ")
    if _WIDE.search(text):
        text = text.translate(_NARROW)
    # The library takes valid Unicode only.
    return _SURROGATE.sub("\ufffd", text) if _SURROGATE.search(text) else text


def _stands_free(text: str, start: int, end: int) -> bool:
    """Whether neither edge of text[start:end] lies inside a longer word of an alphabet."""
    cut_left = start > 0 and _of_alphabet(text[start]) and _of_alphabet(text[start - 1])
    return not cut_left and not (end < len(text) and _of_alphabet(text[end - 1]) and _of_alphabet(text[end]))


def _of_alphabet(char: str) -> bool:
    return char.isalnum() and (char < _ALPHABETS_END or "\u1e00" <= char <= "\u1fff")


def _told(joined: str, hits: Sequence[Span]) -> str:
    start, end = hits[0]
    word = joined[start:end]
    short = word if len(word) <= _NAMED_CHARS else word[: _NAMED_CHARS - 1] + "…"
    return f"word ‘{short}’" + (f" and {len(hits) - 1} more" if len(hits) > 1 else "")


def _masked(record: Record, joined: str, hits: Sequence[Span]) -> Record:
    """`record` with stars for its hits; `joined` holds its texts with a line feed between them."""
    pieces: list[str] = []
    done = 0
    for start, end in hits:
        pieces += (joined[done:start], "*" * (end - start))
        done = end
    joined = "".join(pieces) + joined[done:]
    messages: list[Message] = []
    at = 0
    for message in record.messages:
        end = at + len(message["content"])
        messages.append(Message(role=message["role"], content=joined[at:end]))
        at = end + 1
    return record._replace(messages=messages, rejected=None if record.rejected is None else joined[at:])
