"""Which language a text is in: by its script, at once, or by lingua, with care. Knows text; nothing of files.

The script rule tells apart what scripts tell apart. Latin letters are taken for English, unless one in thirty carries
an accent or is no English letter; Cyrillic ones for Russian, Arabic ones for Arabic. Where this is not enough, lingua
(the extra `llmkit[lingua]`, https://github.com/pemistahl/lingua-py) knows 75 languages.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from llmkit.data.filters import Rejection, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import joined
from llmkit.errors import MachineError, RecipeError

NONE, OTHER = "none", "other"
# A Han character says about as much as three Latin letters, a kana as two, a Hangul syllable as two. Chinese full stops and
# commas count as Han: they are evidence too, and with them a run is a whole sentence, which is quicker to count.
_WEIGHTS = {"zh": 3, "ja": 2, "ko": 2}
_HAN = "\u3001-\u3003\u3005-\u3011㐀-䶿一-鿿\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\U00020000-\U0003ffff"
_SCRIPTS = {
    "zh": _HAN,
    "ja": "\u3041-\u3096\u30a1-\u30fa\u30fc-\u30fe\u31f0-\u31ff\uff66-\uff9d",
    "ko": "\u1100-\u11ff\u3131-\u318e가-힣",
    "en": "A-Za-zＡ-Ｚａ-ｚ",
    "ru": "\u0400-\u052f",
    "ar": "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f",
    "he": "\u05d0-\u05ea",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "hi": "\u0900-\u097f",
    "th": "\u0e01-\u0e5b",
}
NAMES = (*_SCRIPTS, OTHER)
_RUNS = {name: re.compile(f"[{characters}]+") for name, characters in _SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")
_A_HAN = re.compile("[㐀-䶿一-鿿\uf900-\ufaff\U00020000-\U0003ffff]")
_ASCII_LETTERS = re.compile("[A-Za-z]+")
_WORDS = re.compile(r"[^\W\d_]+")
_ACCENTED = re.compile("[ÀÁ-ÖØ-öø-ʯ\u1e00-\u1eff]")
# Any letter that is neither ASCII nor Han: without one, only Han and ASCII need counting.
_FURTHER = re.compile("[ªµºÀ-ÖØ-öø-ʯ\u0370-\u1fff\u2c00-\u2dff\u3041-\u318f\ua000-\uabff가-힣\uff21-\uff3a\uff41-\uff9d]")
_CODE = re.compile(r"```.*?(?:```|\Z)|https?://[!-~]+", re.DOTALL)
_LOOKED_AT = 20_000  # characters: enough to know a language by


def language(text: str) -> str:
    """The language by script: a name of `NAMES`, or "none" for a text without letters.

    The script that weighs most wins; a Han character weighs as much as three Latin letters, so Chinese with English
    words in it is "zh". Kana that are a fifth of all kana and Han make a text Japanese. Fenced code and URLs are in no
    language, unless there is nothing else. Looks at the first 20,000 characters.
    """
    text = text[:_LOOKED_AT]
    if "```" in text or "://" in text:
        talk = _CODE.sub(" ", text)
        text = talk if _LETTER.search(talk) else text
    if text.isascii():
        return "en" if _ASCII_LETTERS.search(text) else NONE
    if _FURTHER.search(text):
        return _weigh(text)
    han = sum(map(len, _RUNS["zh"].findall(text)))
    if not han or not _A_HAN.search(text):
        return "en" if _ASCII_LETTERS.search(text) else OTHER if _LETTER.search(text) else NONE
    if 3 * han >= len(text) - han:
        return "zh"
    return "zh" if 3 * han >= sum(map(len, _ASCII_LETTERS.findall(text))) else "en"


def languages(names: Sequence[str], *, by: Literal["script", "lingua"] = "script") -> Rule:
    """A rule that keeps records in one of `names`, all texts of a record taken together; reason `language`.

    By script, Chinese also is what a user asks in Chinese, whatever code or foreign text stands beside it: four Han
    characters that are a twentieth of the letters of the user's words.

    A record without a letter (sums, emoji) is in every language. Names are those of `NAMES`, with lingua ISO 639-1
    codes.

    Raises:
        RecipeError: a name that nothing is ever found to be.
        MachineError: lingua is not installed.
    """
    known, detect = (NAMES, language) if by == "script" else _lingua()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"no such language: {name!r}", code="LK0214", where="clean.languages", next=f"choose from {', '.join(known)}"
            )
    wanted = frozenset(names) | {NONE}
    wish = " or ".join(names)
    mixed = by == "script" and "zh" in wanted

    def judge(record: Record) -> Verdict:
        found = detect(joined(record))
        if found in wanted or (mixed and _asks_in_chinese(record)):
            return record
        return Rejection("language", f"{found}, not {wish}")

    return judge


def _asks_in_chinese(record: Record) -> bool:
    asked = "\n".join([message["content"] for message in record.messages if message["role"] == "user"])[:_LOOKED_AT]
    han = sum(map(len, _RUNS["zh"].findall(asked)))
    kana = _RUNS["ja"].search(asked)
    return han >= 4 and not kana and 20 * han >= sum(map(len, _WORDS.findall(asked)))


def _weigh(text: str) -> str:
    weights = {name: _WEIGHTS.get(name, 1) * sum(map(len, runs.findall(text))) for name, runs in _RUNS.items()}
    if not _A_HAN.search(text):
        weights["zh"] = 0
    # In letters, not weights: Japanese prose is about half kana, and a stray の does not make a text Japanese.
    kana, han = weights["ja"] // 2, weights["zh"] // 3
    if kana and 5 * kana >= kana + han:
        weights["ja"] += weights.pop("zh")
    else:
        weights["ja"] = 0
    accented = len(_ACCENTED.findall(text))
    if accented >= 3 and 30 * accented >= weights["en"] + accented:
        weights[OTHER] = weights.pop("en") + accented
    best = max(weights, key=lambda name: weights[name])
    return best if weights[best] else OTHER if _LETTER.search(text) else NONE


@lru_cache(maxsize=1)
def _lingua() -> tuple[tuple[str, ...], Any]:
    """Every code lingua knows, and text → code. All languages stand for election: among a few, the rest are taken for them."""
    try:
        import lingua
    except ImportError:
        raise MachineError("lingua is not installed", code="LK0907", next="pip install 'llmkit[lingua]'") from None
    # Its small models: 66 MB in place of 900, and a dialogue is long enough for them.
    detector = lingua.LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
    codes = tuple(sorted(one.iso_code_639_1.name.lower() for one in lingua.Language.all()))

    def detect(text: str) -> str:
        if not _LETTER.search(text):
            return NONE
        found = detector.detect_language_of(text[:_LOOKED_AT].replace("\0", "\n"))
        return OTHER if found is None else str(found.iso_code_639_1.name.lower())

    return codes, detect
