"""The cleaning report: every number is the report's own, and no text of the data becomes markup."""

import re
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llmkit.report import cleaning, html

VOID = {"meta", "link"}
ALLOWED = re.compile(
    "html|head|meta|link|title|style|body|main|header|section|aside|nav|article|footer|h[1-4]|p|b|a|bdi|code|div|span|ul|li|"
    "table|thead|tbody|tr|th|td|details|summary|del|ins"
)
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><script",
    "&lt;b&gt;",
    "\x1b[31m",
    "\ud800",
    "\u202e",
]


class Page(HTMLParser):
    """What a page holds; fails on a tag that is not closed in its turn or is none of ours."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert ALLOWED.fullmatch(tag), tag
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """The report with every text in it changed; the keys that name its parts stay."""
    if isinstance(value, dict):
        return {key: replaced(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


@pytest.mark.parametrize("text", NASTY)
def test_a_text_in_any_field_stays_a_text(cleaning_report: dict[str, Any], text: str) -> None:
    plain = Page(cleaning.render(replaced(cleaning_report, lambda _: "x")))
    page = cleaning.render(replaced(cleaning_report, lambda _: text))
    found = Page(page)
    assert found.tags == plain.tags
    assert "<script" not in page.lower()
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert " ".join(html.printable(text).split()) in found.text
    page.encode("utf-8")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_in_any_field_leaves_the_page_whole(cleaning_report: dict[str, Any], data: st.DataObject) -> None:
    texts = st.one_of(st.text(max_size=30), st.sampled_from(NASTY), st.text("<>&\"'/!-[]cdata script", max_size=30))
    report = replaced(deepcopy(cleaning_report), lambda old: data.draw(st.one_of(st.just(old), texts)))
    for name in ("config", "versions"):
        report[name][data.draw(texts)] = {data.draw(texts): [data.draw(texts)]}
    report["personal"]["kinds"][data.draw(texts)] = 1
    report["distributions"][data.draw(texts)] = report["distributions"]["turns"]
    page = cleaning.render(report)
    assert "<script" not in page.lower()
    Page(page)
    page.encode("utf-8")
    assert_fits(cleaning.summary(report))


def test_the_page_asks_nothing_of_a_network(cleaning_report: dict[str, Any]) -> None:
    page = cleaning.render(cleaning_report)
    assert html.POLICY == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    attributes = Page(page).attributes
    assert ("content", html.POLICY) in attributes
    targets = [value or "" for name, value in attributes if name in ("href", "src", "action", "srcset")]
    assert all(target.startswith("#") or target == "data:," for target in targets)
    assert not re.search(r"url\(|@import|https?:", page)


def test_a_link_within_the_page_leads_somewhere(cleaning_report: dict[str, Any]) -> None:
    attributes = Page(cleaning.render(cleaning_report)).attributes
    anchors = [value for name, value in attributes if name == "id"]
    assert len(anchors) == len(set(anchors))
    assert {(value or "")[1:] for name, value in attributes if name == "href" and value != "data:,"} <= set(anchors)
    assert "waterfall" in anchors


def test_the_numbers_shown_are_the_reports(cleaning_report: dict[str, Any]) -> None:
    text = Page(cleaning.render(cleaning_report)).text
    headline = "2,676 read = 1,508 kept + 1,168 rejected + 0 quarantined"
    assert headline in text
    assert headline in cleaning.summary(cleaning_report)
    for rule in cleaning_report["rules"]:
        assert f"{rule['removed']:,}" in text
        for reason in rule["reasons"]:
            assert f"{reason['count']:,} · {100 * reason['count'] / rule['removed']:.1f} %".replace("100.0", "100") in text
            for example in reason["examples"]:
                assert " ".join(example["text"].split()) in text
                assert example["source"] in text
                assert example["id"] in text
    assert "not add up" not in text


def test_the_waterfall_ends_where_the_kept_begin(cleaning_report: dict[str, Any]) -> None:
    rows = [line.split() for line in cleaning.summary(cleaning_report).splitlines()[3:13]]
    assert rows[0][-1] == "left"
    assert [int(row[-1].replace(",", "")) for row in rows[1:]] == [2676, 2676, 1636, 1575, 1553, 1553, 1544, 1511, 1508]
    widths = re.findall(r'class="gone" style="width:([\d.]+)%', cleaning.render(cleaning_report))
    removed = [rule["removed"] for rule in cleaning_report["rules"] if rule["removed"]]
    assert [float(width) for width in widths] == pytest.approx([100 * one / 2676 for one in removed], abs=1e-3)


def test_records_that_went_missing_are_told_first(cleaning_report: dict[str, Any]) -> None:
    cleaning_report["kept"] -= 2
    told = "the numbers do not add up: 2 records unaccounted for"
    assert told in Page(cleaning.render(cleaning_report)).text
    assert f"warning: {told}" in cleaning.summary(cleaning_report)
    assert "in exactly one of the three" not in cleaning.render(cleaning_report)


def test_a_leak_is_told_in_words_and_not_by_colour_alone(cleaning_report: dict[str, Any]) -> None:
    assert "✓ No leak between train and the rest" in cleaning.render(cleaning_report)
    cleaning_report["split"]["leaks"] = 3
    assert "✗ 3 leaks from train into valid or test" in cleaning.render(cleaning_report)
    assert "3 leaks" in cleaning.summary(cleaning_report)


def test_what_a_normalizer_changed_is_marked(cleaning_report: dict[str, Any]) -> None:
    page = cleaning.render(cleaning_report)
    assert "<del>請問電腦軟體</del>怎<del>麼</del>安<del>裝</del>" in page
    assert "<ins>请问电脑软件</ins>怎<ins>么</ins>安<ins>装</ins>" in page


@pytest.mark.parametrize("empty", [None, [], {}])
def test_a_report_of_nothing_is_a_page_too(cleaning_report: dict[str, Any], empty: Any) -> None:
    numbers = dict.fromkeys(("read", "kept", "rejected", "quarantined"), 0)
    holders = {key: empty for key, value in cleaning_report.items() if isinstance(value, dict | list | None)}
    for report in ({}, numbers, {"name": "", "seconds": None, **numbers, **holders}):
        page = Page(cleaning.render(report))
        assert "0 read = 0 kept + 0 rejected + 0 quarantined" in page.text
        assert "details" not in page.tags
        assert_fits(cleaning.summary(report))


def test_every_part_may_be_missing_or_empty(cleaning_report: dict[str, Any]) -> None:
    for key, value in cleaning_report.items():
        for part in (value if isinstance(value, list) else [value]) if isinstance(value, list | dict) else []:
            for inner in list(part) if isinstance(part, dict) else []:
                report = deepcopy(cleaning_report)
                for one in report[key] if isinstance(value, list) else [report[key]]:
                    one.pop(inner, None)
                Page(cleaning.render(report))
                assert_fits(cleaning.summary(report))
    rules = [rule | {"reasons": [{"reason": "short", "count": 1, "examples": []}]} for rule in cleaning_report["rules"]]
    assert "No example was noted" in cleaning.render(cleaning_report | {"rules": rules})


def test_the_time_is_left_out_where_it_is_unknown(cleaning_report: dict[str, Any]) -> None:
    assert "1.2 s (2,230 records a second)" in cleaning.render(cleaning_report)
    for unknown in (None, 0.0, float("nan"), float("inf")):
        report = cleaning_report | {"seconds": unknown}
        assert "records a second" not in cleaning.render(report) + cleaning.summary(report)


@pytest.mark.parametrize("most", [0, 3, 60])
def test_the_summary_fits_a_terminal(cleaning_report: dict[str, Any], most: int) -> None:
    cleaning_report["rules"] *= 4
    for number, rule in enumerate(cleaning_report["rules"]):
        rule["name"] = f"规则_{number}_" + "很长" * most
    cleaning_report["warnings"] = [f"第 {number} 条\n警告 \x1b[31m " + "长" * most for number in range(30)]
    cleaning_report["name"] = "数据" * 100
    text = cleaning.summary(cleaning_report | {"read": 10**12})
    assert_fits(text)
    assert "25 other rules" in text
    assert "and 27 more warnings" in text
    table = text.splitlines()[3:16]
    assert len({cell_len(line) for line in table[:-1]}) == 1, "Han names take two columns and stay aligned"


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "–"), (0, 5, "0 %"), (5, 5, "100 %"), (1, 10**6, "< 0.1 %"), (10**6 - 1, 10**6, "> 99.9 %"), (389, 1000, "38.9 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, shown: str) -> None:
    assert html.percent(part, whole) == shown


def test_texts_keep_their_language_and_direction() -> None:
    assert html.said("你好") == '<bdi lang="zh">你好</bdi>'
    assert html.said("こんにちは、世界") == '<bdi lang="ja">こんにちは、世界</bdi>'
    assert html.said("مرحبا", block=True) == '<div class="said" dir="auto" lang="ar">مرحبا</div>'
    assert html.said("hi") == "<bdi>hi</bdi>"
    assert html.printable("a\u202eb\x00c\ud800") == "a⟨U+202E⟩b␀c\ufffd"


def test_long_lists_and_texts_are_cut_and_say_so(cleaning_report: dict[str, Any]) -> None:
    cleaning_report["sources"] *= 500
    cleaning_report["clusters"] *= 100
    cleaning_report["distributions"]["languages"] = {
        "buckets": list(map(str, range(90))),
        "before": [2] * 90,
        "after": [1] * 90,
    }
    cleaning_report["rules"][2]["reasons"][0]["examples"] = [
        {"source": "a", "id": "b", "text": "长" * 10**5, "detail": ""}
    ] * 99
    page = cleaning.render(cleaning_report)
    assert "and 950 sources more, in report.json" in page
    assert "and 180 groups more, in report.json" in page
    assert "61 more" in page
    assert page.count("长" * html.EXCERPT + "…") == 10
    assert len(page) < 300_000


def assert_fits(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= 25
    assert max(map(cell_len, lines), default=0) <= 100
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    text.encode("utf-8")
