"""Sensitive words in dialogues, from the user's own lists. Knows how words sit in text; ships no list and no opinion.

A word that begins or ends with a letter or digit of an alphabet (Latin, Greek, Cyrillic, Arabic, …) must begin or end there
in the text too: "ass" is not in "class". Han, kana, Hangul and Thai words match anywhere. Case does not matter, nor
full-width letters and digits.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from llmkit.data.filters import Changed, Rejection, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import joined, spread
from llmkit.errors import DataError

Action = Literal["drop", "mask", "count"]
Span = tuple[int, int]

_CHUNK = 1 << 16  # characters searched at a time: bounds the candidates held at once
_NAMED_CHARS = 20  # of a word in a rejection's detail
_ALPHABETS_END = "\u0e00"  # from Thai on, scripts do not part words by spaces (Hangul does, but glues particles on)
_MAX_CHARS = 1000  # of a word: a hundred thousand equal characters would take minutes to prepare
_PREFIX = 4  # characters
_SHORT_CODES = 0xFFFF
_TABLE_BITS = 20
_ODD = 0x9E3779B97F4A7C15  # a multiplication by it, modulo 2**64, spreads every bit upwards
_SURROGATE = re.compile("[\ud800-\udfff]")
_WIDE = re.compile("[０-９ａ-ｚ]")
_NARROW = {code: code - 0xFEE0 for code in (*range(ord("０"), ord("９") + 1), *range(ord("ａ"), ord("ｚ") + 1))}
# What folding can change: surrogates, and every letter with a lower case; a test looks through all of Unicode.
_FOLDS = re.compile("[A-ZİςÀ-ÖØ-Þ\u0100-\u1fff\u2100-\u2cf3\ua640-\uabbf\ud800-\udfff０-９Ａ-Ｚａ-ｚ\U00010400-\U0001ffff]")


class Finder(Protocol):
    """A text's hits [(start, end)] that start at `begin` or later, in order and apart."""

    def __call__(self, text: str, begin: int = 0) -> list[Span]: ...


def sensitive(words: Sequence[Path], *, action: Action, respell: Callable[[str], str] | None = None) -> Rule:
    """A rule that masks, drops or counts listed words in every text of a record, a rejected answer among them.

    `words`: UTF-8 files, one word a line; blank lines and lines that begin with # are skipped. Of overlapping words the
    leftmost counts, and of those the longest. mask: each character of a hit becomes *; mask and count give
    Changed.found {"sensitive": hits}. drop: Rejection "sensitive", the detail names the first word. A record without a hit
    is returned as it is. Each word counts in the spelling that `respell` gives it too.

    The search is Aho–Corasick: one pass, whatever the number of words.

    Raises:
        DataError: a list that cannot be read, is not UTF-8 or holds no word.
    """
    listed = [word for path in words for word in _listed(path)]
    find = _finder([*listed, *map(respell, listed)] if respell else listed)

    def judge(record: Record) -> Verdict:
        # No word holds what stands between two texts, so none is found across them.
        text = joined(record)
        hits = find(text)
        if not hits:
            return record
        if action == "drop":
            return Rejection("sensitive", _told(text, hits))
        return Changed(spread(record, _masked(text, hits)) if action == "mask" else record, {"sensitive": len(hits)})

    return judge


def holds_any(words: Sequence[Path]) -> Callable[[str], bool]:
    """Whether a text holds a word of these lists, by the rules of `sensitive`.

    Raises:
        DataError: as `sensitive`.
    """
    find = _finder([word for path in words for word in _listed(path)])
    return lambda text: bool(find(text))


def searcher(words: Sequence[Path]) -> tuple[Finder, int]:
    """What finds the words of these lists, by the rules of `sensitive`, and the characters of the longest.

    Raises:
        DataError: as `sensitive`.
    """
    listed = [word for path in words for word in _listed(path)]
    return _finder(listed), max(map(len, listed), default=0)


def _listed(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            "the word list is not UTF-8",
            code="LK0202",
            where=f"{path}:{line}",
            next=f"convert it, as `iconv -f gb18030 -t utf-8 {path.name}`",
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read the word list: {error.strerror}",
            code="LK0113",
            where=str(path),
            next="name the list that is meant: clean.sensitive.words, eval.sensitive or --sensitive",
        ) from None
    lines = [line.strip() for line in text.split("\n")]
    found = [line for line in lines if line and not line.startswith("#")]
    if max(map(len, found), default=0) > _MAX_CHARS:
        raise DataError(
            f"a word has more than {_MAX_CHARS} characters", code="LK0213", where=str(path), next="write one word a line"
        )
    if not found:
        raise DataError(
            "the word list holds no word", code="LK0213", where=str(path), next="write one word a line, or leave the list out"
        )
    return found


def _finder(words: Sequence[str]) -> Finder:
    from ahocorasick_rs import AhoCorasick, MatchKind

    patterns = list(dict.fromkeys(_folded(word) for word in words))
    # All matches, not the leftmost-longest: where "class war" fails at its edges, "class" may still stand.
    automaton = AhoCorasick(patterns, matchkind=MatchKind.Standard)
    longest = max(map(len, patterns), default=0)
    may_hold = _prefix_test(patterns)

    def candidates(text: str) -> Iterator[Span]:
        for begin in range(0, len(text), _CHUNK):
            piece = text if len(text) <= _CHUNK else text[begin : begin + _CHUNK + longest - 1]
            found = [
                (start, -end) for _, start, end in automaton.find_matches_as_indexes(piece, overlapping=True) if start < _CHUNK
            ]
            for start, minus_end in sorted(found):
                yield begin + start, begin - minus_end

    def find(text: str, begin: int = 0) -> list[Span]:
        folded = _folded(text) if _FOLDS.search(text) else text
        hits: list[Span] = []
        if not may_hold(folded):
            return hits
        done = begin
        for start, end in candidates(folded):
            if start >= done and _stands_free(folded, start, end):
                hits.append((start, end))
                done = end
        return hits

    return find


def _prefix_test(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text can hold any of these: it holds the first characters of one. Exact, a third of the cost of the search.

    Up to four 16-bit characters are a number, so all of a text's are looked up at once: in a table of hashes, then in a set.
    Words of one or two characters, or beyond 16 bits, have no such test.
    """
    import numpy as np

    size = min(_PREFIX, *map(len, patterns))
    if size < _PREFIX - 1 or any(ord(max(pattern)) > _SHORT_CODES for pattern in patterns):
        return lambda text: True
    words, shift = np.dtype("<u8"), np.uint64(64 - _TABLE_BITS)
    mask = np.uint64((1 << (16 * size)) - 1)
    prefixes = {int.from_bytes(pattern[:size].encode("utf-16-le"), "little") for pattern in patterns}
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[(np.array(list(prefixes), dtype=words) * _ODD) >> shift] = True

    def may_hold(text: str) -> bool:
        units = text.encode("utf-16-le", "surrogatepass") + bytes(6)
        if len(units) != 2 * len(text) + 6:
            return True
        grams = np.ndarray((len(text),), words, units, 0, (2,)) & mask
        found = table[(grams * _ODD) >> shift].nonzero()[0]
        return len(found) > 0 and not prefixes.isdisjoint(grams[found].tolist())

    return may_hold


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


def _told(text: str, hits: Sequence[Span]) -> str:
    start, end = hits[0]
    word = text[start:end]
    short = word if len(word) <= _NAMED_CHARS else word[: _NAMED_CHARS - 1] + "…"
    return f"word ‘{short}’" + (f" and {len(hits) - 1} more" if len(hits) > 1 else "")


def _masked(text: str, hits: Sequence[Span]) -> str:
    """`text` with stars for its hits."""
    pieces: list[str] = []
    done = 0
    for start, end in hits:
        pieces += (text[done:start], "*" * (end - start))
        done = end
    return "".join(pieces) + text[done:]
