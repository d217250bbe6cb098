"""The normalizers: pure, settled after one pass, and gentle to Chinese punctuation."""

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import normalize
from llmkit.data.filters import Changed
from llmkit.data.record import Record

RULES = {"unicode": normalize.unicode_repair(), "whitespace": normalize.whitespace(), "simplify": normalize.simplify()}
ODD = "aé你漢薴乾隆，。“”　\u200b\u200d\u200c\u00a0\ufeff\u0301\u0303ａＡ１\r\n\t \x85\u2028ãäå½°¥❤️👨👩नक`\x07\ufffd"
TEXT = st.one_of(st.text(st.sampled_from(ODD), max_size=30), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
TEXTS = TEXT.map(lambda text: text.replace("\0", ""))


def of(*texts: str, rejected: str | None = None) -> Record:
    return Record([{"role": "user", "content": text} for text in texts], "f:1", rejected, "explicit", 1.0)


def after(name: str, text: str) -> str:
    verdict = RULES[name](of(text))
    return verdict.record.messages[0]["content"] if isinstance(verdict, Changed) else text


@pytest.mark.parametrize("name", RULES)
@given(texts=st.lists(TEXTS, max_size=4), rejected=st.none() | TEXTS)
def test_a_normalizer_is_pure_settles_at_once_and_treats_every_text_alike(name: str, texts: list[str], rejected) -> None:
    record, copy = of(*texts, rejected=rejected), of(*texts, rejected=rejected)
    verdict = RULES[name](record)
    assert record == copy
    if isinstance(verdict, Changed):
        assert verdict.found == {name: 1}
        assert verdict.record != record
        assert RULES[name](verdict.record) is verdict.record
    else:
        assert verdict is record
    changed = verdict.record if isinstance(verdict, Changed) else verdict
    assert [message["content"] for message in changed.messages] == [after(name, text) for text in texts]
    assert changed.rejected == (None if rejected is None else after(name, rejected))
    assert changed._replace(messages=[], rejected=None) == record._replace(messages=[], rejected=None)


@pytest.mark.parametrize("name", RULES)
def test_chinese_punctuation_stays(name: str) -> None:
    text = "他说：“你好，世界！”——真的？（是的）《书》、【注】；‘引’……「直」～·￥％"
    assert after(name, text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ＡＢｃ１２３", "ABc123"),
        ("你\u200b好\ufeff", "你好"),
        ("a\u00a0b\u3000c", "a b c"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00".replace("\0", "") + "\x07\x1bb\x7f", "ab"),
        ("e\u0301", "é"),
        ("👨\u200d👩\u200d👧 ❤️\u200d🔥", "👨\u200d👩\u200d👧 ❤️\u200d🔥"),
        ("क्\u200dष می\u200cروم", "क्\u200dष می\u200cروم"),
        ("你\u200d好 a\u200cb", "你好 ab"),
        ("坏\ufffd字", "坏\ufffd字"),
        ("你好，世界".encode().decode("latin-1"), "你好，世界"),
        ("说：ä½\xa0å¥½ï¼Œä¸–ç•Œã€‚", "说：你好，世界。"),
        ("Il a été là, où ça ? À 20 °C.", "Il a été là, où ça ? À 20 °C."),
        ("São Paulo, maçã° e coração", "São Paulo, maçã° e coração"),
        ("naïve café — “fine”", "naïve café — “fine”"),
    ],
)
def test_unicode_is_repaired(text: str, expected: str) -> None:
    assert after("unicode", text) == expected


@given(
    st.text(st.characters(min_codepoint=0x3001, max_codepoint=0x9FFF), min_size=2, max_size=20),
    st.sampled_from(["latin-1", "cp1252"]),
)
def test_chinese_read_in_the_wrong_encoding_is_read_again(text: str, encoding: str) -> None:
    han = "".join(one for one in text if "一" <= one <= "\u9fbf")
    if len(han) >= 2:
        wrong = "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in han.encode())
        assert after("unicode", wrong) == unicodedata.normalize("NFC", han)


def test_a_hundred_thousand_marks_on_one_letter_take_no_minute() -> None:
    start = time.perf_counter()
    assert len(after("unicode", "a" + "\u0301\u0316" * 50_000)) < 100
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", [" " * 200_000 + "x", "x" + " \t" * 200_000 + "y", "a" + "\n \n" * 100_000, "```" * 100_000])
def test_a_long_run_of_white_space_takes_no_minute(text: str) -> None:
    start = time.perf_counter()
    after("whitespace", text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  你好   世界  ", "你好 世界"),
        ("a  \nb\t \nc", "a\nb\nc"),
        ("a\n\n\n \n\nb", "a\n\nb"),
        ("a\tb", "a\tb"),
        ("如下：\n    return  1\n  x", "如下：\n    return 1\n  x"),
        ("看  这\n```\na  =  1\n\n\n\nb\n```\n再  见 ", "看 这\n```\na  =  1\n\n\n\nb\n```\n再 见"),
    ],
)
def test_white_space_is_tidied_and_code_is_not(text: str, expected: str) -> None:
    assert after("whitespace", text) == expected


@given(TEXTS)
def test_white_space_apart_nothing_is_lost(text: str) -> None:
    assert re.sub(r"\s", "", after("whitespace", text)) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("歡迎來到臺灣，這裡的頭髮和發展", "欢迎来到台湾，这里的头发和发展"),
        ("乾隆皇帝與乾淨", "乾隆皇帝与干净"),
        ("已经是简体，OK", "已经是简体，OK"),
        ("plain English", "plain English"),
    ],
)
def test_traditional_chinese_becomes_simplified_by_words(text: str, expected: str) -> None:
    assert after("simplify", text) == expected
