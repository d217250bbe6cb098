"""Repetition, special characters and refusals: against their definitions, and on real sentences of both kinds."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.filters import Rejection
from llmkit.data.quality import REFUSALS, is_refusal, refusals, repetition, special
from llmkit.data.record import Record


def of(*texts: str, rejected: str | None = None) -> Record:
    roles = ("user", "assistant")
    return Record([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], "f:1", rejected)


def share(text: str) -> float:
    windows = [text[i : i + 10] for i in range(len(text) - 9)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


PIECES = st.lists(
    st.sampled_from(["哈", "好的，", "the same again ", "说一遍又一遍", "😀", "x" * 9, "每一次都不一样吗", "0123456789"]),
    max_size=40,
)


@given(
    PIECES, st.text(max_size=80).map(lambda text: text.replace("\0", "")), st.floats(0, 1), st.none() | st.just("好的，好的")
)
def test_repetition_is_what_its_definition_says_to_the_last_record(pieces, extra: str, bound: float, rejected) -> None:
    record = of("".join(pieces), extra, rejected=rejected)
    joined = "\0".join(["".join(pieces), extra])
    verdict = repetition(bound)(record)
    assert (verdict is record) == (share(joined) <= bound)


@pytest.mark.parametrize("bound", [0.0, 0.1, 0.25])
def test_the_bound_itself_passes(bound: float) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(100))
    text += text[: 10 + round(bound * 120)]
    record = of(text)
    assert repetition(share(text))(record) is record
    assert isinstance(repetition(share(text) - 1e-9)(record), Rejection)


def test_ordinary_talk_stays_and_a_loop_goes() -> None:
    rule = repetition(0.3)
    talk = of("今天天气怎么样？", "今天晴，最高气温二十五度，适合出门走走。", "那明天呢？", "明天有小雨，出门记得带伞。")
    loop = of("讲个故事", "从前有座山，山里有座庙。" * 10)
    assert rule(talk) is talk
    verdict = rule(loop)
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "repetition"


def test_a_huge_record_is_counted_within_bounds() -> None:
    assert isinstance(repetition(0.3)(of("哈" * 3_000_000)), Rejection)


COMMON = set(",.!?:;-'\"()/，。！？：；（）“”‘’、《》…—")


@given(st.lists(st.text(st.sampled_from("你好ab1é ，。!?{}=#😀█\u0301\n한の"), max_size=30), max_size=3), st.floats(0, 1))
def test_the_share_of_special_characters_is_what_its_definition_says(texts: list[str], bound: float) -> None:
    record = of(*texts)
    seen = [one for one in "".join(texts) if not one.isspace()]
    odd = [one for one in seen if not (one.isalnum() or one in COMMON or unicodedata.category(one).startswith("M"))]
    passes = not odd or len(odd) / len(seen) <= bound
    assert (special(bound)(record) is record) == passes


def test_prose_has_no_special_characters_and_noise_has() -> None:
    rule = special(0.3)
    for text in (
        "“你好”，他说：《书》……",
        "It's 20 (or so) - isn't it?",
        "नमस्ते दुनिया",
        "for row in rows:\n    total += row[0]  # 合计",
        "好的😀！",
    ):
        record = of(text)
        assert rule(record) is record
    verdict = rule(of("★☆★☆▓▓▓▓", "好"))
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "special_characters"


@pytest.mark.parametrize(
    "answer",
    [
        "作为一个人工智能语言模型，我没有个人情感。",
        "作为一个AI语言模型，我无法浏览网页。",
        "作为AI助手，我不能提供医疗建议。",
        "您好，作为一名人工智能助手，我很乐意……",
        "很抱歉，作为一个 AI 模型，我并不了解实时信息。",
        "作为一个由OpenAI训练的大型语言模型，我不会有偏好。",
        "抱歉，我无法回答这个问题。",
        "非常抱歉，我目前无法为您提供该服务的信息。",
        "对不起，我不能协助您完成这个请求。",
        "我无法提供相关信息。",
        "我只是一个语言模型，无法感受情绪。",
        "As an AI language model, I don't have feelings.",
        "As a large language model, I cannot browse.",
        "I'm sorry, but as an AI assistant I can't do that.",
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I cannot fulfill this request.",
        "Sorry, I can't help with that.",
        "I cannot provide any medical advice.",
        "I am just an AI and have no opinion.",
    ],
)
def test_boilerplate_of_an_assistant_is_a_refusal(answer: str) -> None:
    verdict = refusals()(of("问", answer))
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "refusal"
    for innocent in (
        of(answer, "好的，我明白。"),
        of("问", "答", rejected=answer),
        of("问", "这是一个很长的回答。" * 12 + answer),
    ):
        assert refusals()(innocent) is innocent


@pytest.mark.parametrize(
    "answer",
    [
        "作为一个人，我觉得应该诚实。",
        "作为人工智能的重要分支，机器学习发展很快。",
        "作为一名AI研究员，我每天读论文。",
        "作为人工智能专业的学生，我建议先学数学。",
        "作为一个模型飞机爱好者，我推荐这款。",
        "抱歉，我无法参加今晚的聚会，我在加班。",
        "对不起，我不能陪你去看电影了。",
        "很抱歉，我们无法提供退款。",
        "如果客服说我无法提供帮助，你可以投诉。",
        "我不能提供给他机会，因为比赛已经结束。",
        "我没有时间。",
        "我是一个人工智能助手，很高兴认识你！",
        "As an airline, we fly daily.",
        "As a model student, I study hard.",
        "As an AI researcher, I read a lot.",
        "I'm sorry, but I can't make it tonight.",
        "I can't help laughing at that.",
        "Sorry I am late!",
        "I cannot provide for a family of six on this salary.",
        "The bot said 'I cannot assist with that'.",
    ],
)
def test_what_people_say_is_no_refusal(answer: str) -> None:
    record = of("问", answer)
    assert refusals()(record) is record


def test_every_phrase_holds_its_hint_and_compiles() -> None:
    for line in REFUSALS.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            hint, tab, phrase = line.partition("\t")
            assert tab
            assert hint == hint.lower()
            assert re.compile(phrase)


@given(st.lists(st.text(max_size=200), max_size=4))
def test_rules_of_quality_leave_the_record_as_it_was(texts: list[str]) -> None:
    record, copy = of(*texts), of(*texts)
    for rule in (repetition(0.2), special(0.2), refusals()):
        verdict = rule(record)
        assert record == copy
        assert verdict is record or isinstance(verdict, Rejection)


@given(
    st.one_of(st.text(max_size=80), st.sampled_from(["As an AI language model, I", "作为一个人工智能", "我无法", "Sure."])),
    st.text(max_size=80),
)
def test_an_answer_is_a_refusal_where_the_rule_would_drop_it(head: str, tail: str) -> None:
    assert is_refusal(head + tail) is isinstance(refusals()(of("问", head + tail)), Rejection)
