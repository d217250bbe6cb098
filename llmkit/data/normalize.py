"""Rules that spell alike what is alike: Unicode, white space, Simplified Chinese, a glossary. Knows text; drops nothing.

Each changes every text of a record, a rejected answer too, and answers `Changed(record, {its name: 1})`, or the record
itself where there was nothing to change.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from llmkit.data.filters import Changed, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import BETWEEN, joined, spread

# Before the dear passes: a character that one of them could change, but for what NFC composes.
_SUSPECT = re.compile(
    "[\x01-\x08\x0b-\x1f\x7f-\xa0\xadã-éï\u1680\u180e\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u206a-\u206f\u3000\ufeff"
    "\ufff9-\ufffb０-９Ａ-Ｚａ-ｚ]"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_DROPPED = (*range(1, 9), *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xAD, 0x180E, 0x200B, 0x2060, *range(0x206A, 0x2070), 0xFEFF)
_SPACES = (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_WIDE = (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
_TABLE: dict[int, str | None] = {
    **dict.fromkeys((*_DROPPED, 0xFFF9, 0xFFFA, 0xFFFB)),
    **dict.fromkeys(_SPACES, " "),
    **{code: chr(code - 0xFEE0) for code in _WIDE},
}
# Joiners say something inside emoji and between letters of Arabic and of India's scripts, and nothing elsewhere.
_JOINED = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001faff\U000e007f"
_LOOSE_JOINERS = re.compile(f"(?<![\u200c\u200d{_JOINED}])[\u200c\u200d]++|(?<![\u200c\u200d])[\u200c\u200d]++(?![{_JOINED}])")

# UTF-8 of Chinese that was read as Windows-1252 or Latin-1: two characters of three bytes or more in a row. In honest text
# an accented lower-case letter and two signs do not follow one another twice.
_TAILS = bytes(range(0x80, 0xC0)).decode("latin-1") + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
_MOJIBAKE = re.compile(f"(?:[ã-éï][{re.escape(_TAILS)}]{{2}}){{2,}}")
_TO_BYTES = {ord(bytes([code]).decode("cp1252", "ignore") or chr(code)): chr(code) for code in range(0x80, 0xA0)}

_MARKS_MATTER = 1000  # characters
_RUN_INSIDE = re.compile(r"(?<=\S)[^\S\n]{2,}(?=\S)")
_LINE_TAIL = re.compile(r"(?<![^\S\n])[^\S\n]++(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
_FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
_HAN = re.compile("[\u2e80-\u2fdf㐀-䶿一-鿿\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")


def unicode_repair() -> Rule:
    """One spelling for what looks alike, with Chinese punctuation left alone.

    In order: Chinese that was read in the wrong encoding is read again; every kind of line end becomes a line feed;
    zero-width and control characters go (a joiner inside an emoji or an Arabic or Indian word stays), spaces of odd widths
    become a space, full-width letters and digits ASCII; what is left becomes NFC. ，。！？“”…、《》 stay, and so does U+FFFD.
    In a text over 1,000 characters a letter keeps 30 combining marks, as in Unicode's Stream-Safe Text Format.
    """
    return normalizer("unicode", repair)


def repair(text: str) -> str:
    """`unicode_repair` for one text."""
    while _SUSPECT.search(text):
        fixed = _compose(_repair_once(text))
        if fixed == text:
            return text
        text = fixed
    # Without a suspect nothing is left but to compose, and what that makes may be a suspect.
    composed = _compose(text)
    return composed if composed == text else repair(composed)


def whitespace() -> Rule:
    """No white space at the ends of a text or a line, one space where there were several, at most one blank line.

    The indentation of a line stays, a lone tab too, and so does all that stands in fenced code.
    """

    def tidy(text: str) -> str:
        # One space between words, or one or two line feeds: then there is nothing to do, and split() is quick to see it.
        flat = text.replace("\n\n", "\n").replace("\n", " ")
        if " ".join(flat.split()) == flat and " \0" not in flat and "\0 " not in flat:
            return text
        return BETWEEN.join([_tidy(one) for one in text.split(BETWEEN)])

    return normalizer("whitespace", tidy)


def simplify() -> Rule:
    """Traditional → Simplified Chinese, word by word, by OpenCC's t2s; a record with kana in it is Japanese and stays."""
    return normalizer("simplify", simplified)


def simplified(text: str) -> str:
    """`simplify` for one text."""
    if text.isascii() or not _HAN.search(text) or _KANA.search(text):
        return text
    convert = _converter().convert
    once: str = convert(text)
    # Again, for a few characters take two steps (薴 → 苧 → 苎).
    return once if once == text else str(convert(once))


def normalizer(name: str, change: Callable[[str], str]) -> Rule:
    """A rule that changes all texts of a record, joined, in one go."""
    found = {name: 1}

    def rule(record: Record) -> Verdict:
        before = joined(record)
        after = change(before)
        return record if after == before else Changed(spread(record, after), found)

    return rule


def _repair_once(text: str) -> str:
    if _MOJIBAKE.search(text):
        text = _MOJIBAKE.sub(_read_again, text)
    text = _LINE_ENDS.sub("\n", text).translate(_TABLE)
    return _LOOSE_JOINERS.sub("", text) if "\u200d" in text or "\u200c" in text else text


def _compose(text: str) -> str:
    # Python sorts a run of marks in quadratic time: a hundred thousand on one letter would take a minute.
    if len(text) > _MARKS_MATTER and not text.isascii():
        text = _too_many_marks().sub(r"\1", text)
    return unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1)
def _too_many_marks() -> re.Pattern[str]:
    marks = "".join(character for character in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(character))
    return re.compile(f"([{marks}]{{30}})[{marks}]+")


def _read_again(found: re.Match[str]) -> str:
    try:
        return found[0].translate(_TO_BYTES).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return found[0]


def _tidy(text: str) -> str:
    parts = _FENCE.split(text.strip()) if "```" in text else [text.strip()]
    for index in range(0, len(parts), 2):
        parts[index] = _BLANK_LINES.sub("\n\n", _LINE_TAIL.sub("", _RUN_INSIDE.sub(" ", parts[index])))
    return "".join(parts)


@lru_cache(maxsize=1)
def _converter() -> Any:
    """One for a process: its dictionaries are 10 MB."""
    import opencc

    return opencc.OpenCC("t2s")
