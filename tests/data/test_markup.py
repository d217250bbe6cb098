"""URLs and HTML: what goes, and what only looks like it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.filters import Changed, Rejection
from llmkit.data.markup import markup, strip, urls
from llmkit.data.record import Record


def of(*texts: str, rejected: str | None = None) -> Record:
    return Record([{"role": "user", "content": text} for text in texts], "f:1", rejected)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("看https://example.com/a?b=c&d=1，很好", "看<URL>，很好"),
        ("See http://a.org/x.", "See <URL>."),
        ("(https://en.wikipedia.org/wiki/C_(language))", "(<URL>)"),
        ("[站点](https://a.cn/路径)", "[站点](<URL>路径)"),
        ("访问www.baidu.com。", "访问<URL>。"),
        ("**https://a.com/**", "**<URL>**"),
        ("ftp://a.b/c HTTPS://D.E", "<URL> <URL>"),
        ("http:// 和 www. 是什么？", "http:// 和 www. 是什么？"),
        ("a://b awww.x", "a://b awww.x"),
    ],
)
def test_a_url_is_masked_and_the_sentence_around_it_stays(text: str, masked: str) -> None:
    record = of("好", text, rejected=text)
    verdict = urls(action="mask")(record)
    if text == masked:
        assert verdict is record
        assert urls(action="drop")(record) is record
    else:
        assert isinstance(verdict, Changed)
        assert verdict.record == of("好", masked, rejected=masked)
        assert verdict.found == {"url": 2 * masked.count("<URL>")}
        assert urls(action="mask")(verdict.record) is verdict.record
        assert isinstance(urls(action="drop")(record), Rejection)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<p>你好</p><p>世界</p>", "你好\n世界"),
        ("第一行<br>第二行<br/>第三行", "第一行\n第二行\n第三行"),
        ('<a href="http://x.com" target=_blank>点这里</a>！', "点这里！"),
        ("<DIV CLASS='a'>x</DIV>", "x"),
        ("<b>粗</b>体", "粗体"),
        ("A&nbsp;&amp;&nbsp;B &lt; C &#39;q&#39;", "A\xa0&\xa0B < C 'q'"),
        ("a<!-- secret -->b<script>alert('<p>')</script>c", "abc"),
        ('![图](https://a.com/b.png)看[这里](http://c.com/d_(e) "t")', "图看这里"),
        ("<input disabled>", "<input disabled>"),
        ("<video controls autoplay></video>片", "片"),
    ],
)
def test_markup_leaves_what_a_browser_would_show(text: str, shown: str) -> None:
    assert strip(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "if a < b > c: pass",
        "a <b and c> d",
        "x<y，y>z，所以x<z？",
        "List<int> 和 Map<String, List<Section>>",
        "vector<a> v; Array<Table> t; Class<Font> f",
        "1 <2 & 3> 2; A&B; AT&T; R&D;x",
        "用 `<div>` 标签：\n```html\n<p>段落</p>&nbsp;\n```",
        "<think>嗯</think> <|im_end|> </s1>",
        "#include <stdio.h>",
        "foo[i](j) and [见附录](附录一) and [x](#top)",
        "<s> 是开始符",
        "a <- b; c -> d; <3",
        "&unknownname; &copyright; &#xD800; &#0; &#9999999;",
    ],
)
def test_code_math_and_types_survive(text: str) -> None:
    record = of(text)
    assert markup(action="strip")(record) is record
    assert markup(action="drop")(record) is record


def test_a_rejection_shows_the_place() -> None:
    verdict = markup(action="drop")(of("好", "你好<br>世界"))
    assert verdict == Rejection("markup", " 你好<br>世界"[-9:]) or (isinstance(verdict, Rejection) and "<br>" in verdict.detail)


PARTS = st.lists(
    st.sampled_from(
        ["<p>", "</p>", "<b", "> ", "&lt;", "&amp;", "`", "```", "http://a.b", "](", "[x", "<!--", "-->", "字", "\n", " "]
    )
)


@given(st.lists(PARTS.map("".join), max_size=3), st.none() | PARTS.map("".join))
def test_both_rules_are_pure_and_treat_every_text_alike(texts: list[str], rejected: str | None) -> None:
    for rule in (urls(action="mask"), markup(action="strip")):
        record, copy = of(*texts, rejected=rejected), of(*texts, rejected=rejected)
        verdict = rule(record)
        assert record == copy
        if isinstance(verdict, Changed):
            for before, after in zip(texts, verdict.record.messages, strict=True):
                alone = rule(of(before))
                assert after["content"] == (alone.record.messages[0]["content"] if isinstance(alone, Changed) else before)
        else:
            assert verdict is record


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<script>",
        "<a ",
        "<a x=1 ",
        "<a href='",
        "[",
        "![a](http://",
        "http://(",
        "www.a(",
        "`",
        "```",
        "&",
        "&#",
        "<b>",
        "(http://a",
        '[a](http://b "',
    ],
)
def test_no_text_makes_them_slow(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.perf_counter()
    strip(text)
    strip("-->" + text)
    urls(action="mask")(of(text))
    assert time.perf_counter() - start < 3
