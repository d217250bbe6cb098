"""Languages by script and by lingua."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import language as module
from llmkit.data.filters import Rejection
from llmkit.data.language import NAMES, language, languages
from llmkit.data.record import Record
from llmkit.errors import MachineError, RecipeError


def of(*texts: str) -> Record:
    return Record([{"role": "user", "content": text} for text in texts])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界。", "zh"),
        ("請用繁體字回答", "zh"),
        ("请用 Python 写一个 function，要 return 一个 list", "zh"),
        ("怎么用 pandas 读 CSV？\n```python\nimport pandas\ndf = pandas.read_csv('file.csv', encoding='utf-8')\n```", "zh"),
        ("看 https://example.com/a/very/long/path/that/says/nothing/of/language", "zh"),
        ("鲜の每日果汁，很好喝", "zh"),
        ("哈哈😀😀", "zh"),
        ("今天真好·朋友 café", "zh"),
        ("Hello there!", "en"),
        ("It’s “fine” — really…", "en"),
        ("The word 你好 means hello in Mandarin", "en"),
        ("I had a café au lait", "en"),
        ("L'été dernier, j'ai visité la forêt où était né mon père.", "other"),
        ("Tôi không biết tiếng Việt nhiều lắm", "other"),
        ("こんにちは、元気ですか", "ja"),
        ("東京都の人口増加について", "ja"),
        ("안녕하세요 여러분", "ko"),
        ("Привет, как дела?", "ru"),
        ("مرحبا بالعالم", "ar"),
        ("สวัสดีครับ", "th"),
        ("नमस्ते दुनिया", "hi"),
        ("ሰላም", "other"),
        ("1 + 1 = 2", "none"),
        ("😀，。！", "none"),
        ("", "none"),
        ("```\nprint(1)\n```", "en"),
    ],
)
def test_the_script_tells_the_language(text: str, expected: str) -> None:
    assert language(text) == expected


@given(st.text())
def test_any_text_has_one_of_the_names_and_more_chinese_keeps_it_chinese(text: str) -> None:
    assert language(text) in {*NAMES, "none"}
    if language(text) == "zh":
        assert language(text + "，你好") == "zh"


@given(st.text("你好，。ab é😀のк", max_size=20))
def test_the_quick_way_weighs_as_the_slow_one(text: str) -> None:
    letters = any(one.isalpha() for one in text)
    assert language(text) == (module._weigh(text) if letters else "none")


def test_a_record_is_judged_as_a_whole() -> None:
    rule = languages(["zh"])
    assert rule(stays := of("hello", "你好，很高兴见到你")) is stays
    assert rule(of("hello there my friend", "你")) == Rejection("language", "en, not zh")
    assert rule(sums := of("1+1=?", "2")) is sums


def test_a_language_nothing_is_ever_found_to_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="'chinese'"):
        languages(["chinese"])


def test_lingua_knows_what_scripts_cannot_tell() -> None:
    pytest.importorskip("lingua")
    rule = languages(["fr", "zh"], by="lingua")
    assert rule(french := of("Je voudrais un verre de lait, merci")) is french
    verdict = rule(of("I would like a glass of milk, please"))
    assert isinstance(verdict, Rejection)
    assert verdict.detail.startswith("en")


def test_without_lingua_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    module._lingua.cache_clear()
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(MachineError) as raised:
        languages(["zh"], by="lingua")
    assert "llmkit[lingua]" in raised.value.next


@pytest.mark.parametrize(
    "asked",
    ["Docker里怎么run一个container", "帮我写个快速排序", "把这段翻译成中文：The quick brown fox jumps over the lazy dog."],
)
def test_what_is_asked_in_chinese_counts_as_chinese_whatever_code_answers_it(asked: str) -> None:
    code = "docker run -it --name my-container ubuntu:22.04 /bin/bash && echo done && exit 0 # and so on and so forth"
    record = Record([{"role": "user", "content": asked}, {"role": "assistant", "content": code}])
    assert languages(["zh"])(record) is record
    english = Record([{"role": "user", "content": "How do I run a container?"}, {"role": "assistant", "content": code}])
    assert languages(["zh"])(english) is not english
