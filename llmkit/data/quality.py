"""Which dialogues say too little: repetition, special characters, boilerplate refusals. Knows texts; changes none."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from llmkit.data.filters import Rejection, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import joined

NGRAM = 10  # characters, as in data-juicer
_HASHED = 4  # of them fit 64 bits
_SHORT = 64  # characters under which counting at once is cheaper
_LOOKED_AT = 100_000  # characters: one n-gram costs a hundred bytes while it is counted

_PLAIN = re.compile("[^\x00\t-\r\x20\"'(),-.0-;?!A-Za-z\u00a0\u2010-\u2027\u3000-\u303f\u3041-\u30ff㐀-䶿一-鿿\uff00-\uff5e]+")
_UNUSUAL = re.compile(r"[^\w\s]")

REFUSALS = Path(__file__).parent / "lists" / "refusals.txt"
_HEAD = 60  # characters of a message, within which a refusal begins
_CLAUSE = 200  # characters that are enough to see the whole of it


def repetition(max_share: float) -> Rule:
    """A rule that drops dialogues that repeat themselves; reason `repetition`.

    The share is 1 − distinct/all over the 10-character windows at every position of all texts joined (of their first
    100,000 characters): 0 where nothing is said twice, towards 1 where one phrase is said again and again. A dialogue
    under 10 characters has none. The verdict is exact.
    """
    import numpy as np

    words = np.dtype("<u8")

    def judge(record: Record) -> Verdict:
        # A corrected answer repeats most of what it corrects.
        text = joined(record if record.rejected is None else record._replace(rejected=None))[:_LOOKED_AT]
        windows = len(text) - NGRAM + 1
        if windows <= 0:
            return record
        if len(text) >= _SHORT:
            units = text.encode("utf-16-le", "surrogatepass")
            if len(units) == 2 * len(text):
                # Distinct 4-grams, as 64-bit numbers. The first of each falls in a window that no other window equals but
                # later ones, so there are at least as many distinct windows, less the six 4-grams in the last window.
                grams = np.ndarray((len(text) - _HASHED + 1,), words, units, 0, (2,)).copy()
                grams.sort()
                distinct = int(np.count_nonzero(grams[1:] != grams[:-1])) + 1 - (NGRAM - _HASHED)
                if distinct >= (1 - max_share) * windows:
                    return record
        share = _repeated(text, windows)
        return record if share <= max_share else Rejection("repetition", f"{share:.0%} of it repeats, at most {max_share:.0%}")

    return judge


def special(max_share: float) -> Rule:
    """A rule that drops dialogues of mostly special characters; reason `special_characters`.

    Special is what is neither a letter, a digit or a mark on one, nor white space, nor the punctuation of prose
    (`,.!?:;-'"()/` and that of Chinese): emoji, box drawing, code's `{}[]<>=+*#$%^&|\\~` and the like. The share is of all
    characters but white space.
    """

    def judge(record: Record) -> Verdict:
        text = joined(record)
        runs = _PLAIN.findall(text)
        if not runs:
            return record
        candidates = "".join(runs)
        size = sum(map(len, text.split())) - text.count("\0")
        if len(candidates) <= max_share * size:
            return record
        count = sum(1 for one in _UNUSUAL.findall(candidates) if not unicodedata.category(one).startswith("M"))
        share = count / size if size else 0.0
        if share <= max_share:
            return record
        return Rejection("special_characters", f"{share:.0%} special characters, at most {max_share:.0%}")

    return judge


def refusals() -> Rule:
    """A rule that drops dialogues in which the assistant answers with boilerplate; reason `refusal`.

    The phrases are the lines of `lists/refusals.txt`, matched at the start of a clause that begins in the first 60
    characters of an assistant's message. What a user says, and a rejected answer, may say anything.
    """
    hint, phrase = _phrases()

    def judge(record: Record) -> Verdict:
        heads = [message["content"][:_CLAUSE] for message in record.messages if message["role"] == "assistant"]
        said = "\0".join(heads).lower()
        if not hint.search(said):
            return record
        for head in said.split("\0"):
            if found := _refusal(head, phrase):
                return Rejection("refusal", found)
        return record

    return judge


def is_refusal(text: str) -> bool:
    """Whether an answer is such boilerplate, by the phrases and places of `refusals`."""
    hint, phrase = _phrases()
    head = text[:_CLAUSE].lower()
    return bool(hint.search(head) and _refusal(head, phrase))


def _refusal(head: str, phrase: re.Pattern[str]) -> str | None:
    found = phrase.search(head.replace("’", "'"))
    return found[0].strip() if found and found.start() <= _HEAD else None


def _repeated(text: str, windows: int) -> float:
    return 1 - len({text[start : start + NGRAM] for start in range(windows)}) / windows


@lru_cache(maxsize=1)
def _phrases() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A quick test for any of the hints, and the phrases, each at the start of a clause."""
    hints: list[str] = []
    phrases: list[str] = []
    for line in REFUSALS.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            hint, _, phrase = line.partition("\t")
            hints.append(re.escape(hint))
            phrases.append(phrase.replace(" ", r"\s+"))
    clause = r"(?:\A\s*|(?<=[。，！？；,.!?;~～\n])\s*)"
    return re.compile("|".join(dict.fromkeys(hints))), re.compile(clause + f"(?:{'|'.join(phrases)})")
