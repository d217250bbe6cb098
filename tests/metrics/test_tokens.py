"""ROUGE's tokens against Unicode's own script property."""

import re
import sys
import unicodedata

import regex
from hypothesis import given
from hypothesis import strategies as st

from llmkit.metrics.tokens import rouge_tokens

SCRIPTS = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u30fc\uff70]")
# Signs and marks of those scripts, such as ㍿, are dropped like punctuation; radicals (⺀) are So, yet written as characters.
DROPPED = {"So", "Mc", "Po"}


def test_every_han_kana_and_hangul_character_is_a_token_of_its_own() -> None:
    wrong = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if not SCRIPTS.match(character) or category == "Cn" or (category in DROPPED and not 0x2E80 <= code <= 0x2FDF):
            continue
        if rouge_tokens(character * 2) != [character, character]:
            wrong.append(hex(code))
    assert wrong == []


@given(st.text(st.characters(max_codepoint=126)))
def test_ascii_text_gives_runs_of_lower_case_letters_and_digits(text: str) -> None:
    assert rouge_tokens(text) == re.findall("[a-z0-9]+", text.lower())


@given(st.text())
def test_no_letter_or_digit_is_lost(text: str) -> None:
    kept = "".join(rouge_tokens(text))
    assert kept == "".join(character for character in text.lower() if character in kept)
    assert all(character in kept for character in text.lower() if character.isalnum())


def test_mixed_text_splits_between_scripts() -> None:
    assert rouge_tokens("我用GPT-4o写代码，2倍速！カナ 한국어 Ünïcode") == [
        *"我用", "gpt", "4o", *"写代码", "2", *"倍速カナ한국어", "ünïcode",
    ]  # fmt: skip
