"""ROUGE's tokens against Unicode's own script property, BLEU's against sacrebleu's."""

import re
import sys
import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from llmkit.metrics.tokens import has_single_characters, rouge_tokens, tokenizer_13a, zh_tokenizer

# What the rules of both tokenizers look at, and the white space that Python and Unicode know.
MARKS = "aB13 .,-'\"&;<>()，。好天\u3000\u2003\n\t😀é—“１/:%$#@[]{}~`_\\\x85\x1cſİカ한"
PIECES = ["<skipped>", "-\n", "&quot;", "&amp;lt;", "3.5", "5.", ".5", "don't", "U.S.", "..."]
TRICKY = st.lists(st.one_of(st.sampled_from([*MARKS, *PIECES]), st.text(max_size=3)), max_size=16).map("".join)

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


@settings(max_examples=1000, deadline=None)
@given(st.lists(TRICKY, min_size=1, max_size=3))
def test_bleu_tokens_equal_sacrebleus(texts: list[str]) -> None:
    zh, western = zh_tokenizer(), tokenizer_13a()
    for text in texts:
        # It strips a line's end before any tokenizer.
        assert zh(text) == TokenizerZh()(text.rstrip()).split()
        assert western(text) == Tokenizer13a()(text.rstrip()).split()


def test_every_character_is_chinese_to_us_if_it_is_to_sacrebleu() -> None:
    zh = zh_tokenizer()
    codes = [*range(0x80, 0x10000), *range(0x10000, sys.maxunicode + 1, 101)]  # it can tell none above U+FFFF apart
    codes = [code for code in codes if not chr(code).isspace()]
    split = {code for code in codes if zh(f"a{chr(code)}b") != [f"a{chr(code)}b"]}
    assert split == {code for code in codes if TokenizerZh._is_chinese_char(chr(code))}


@pytest.mark.parametrize(
    ("text", "found"), [("naïve “quotes” — ok 😀", False), ("好", True), ("カ", True), ("한", True), ("", False)]
)
def test_scripts_without_spaces_are_seen(text: str, found: bool) -> None:
    assert has_single_characters(text) == found
