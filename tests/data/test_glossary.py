"""The glossary against a plain reading of its rule, and the CSV files it refuses."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import glossary as module
from llmkit.data.filters import Changed, Rule
from llmkit.data.glossary import glossary
from llmkit.data.record import Record
from llmkit.errors import DataError


def made(path: Path, lines: str) -> Rule:
    path.write_text(lines, "utf-8")
    return glossary(path)


def after(rule: Rule, text: str) -> str:
    record = Record([{"role": "user", "content": text}])
    verdict = rule(record)
    assert record.messages[0]["content"] == text
    if isinstance(verdict, Changed):
        assert verdict.found == {"glossary": 1}
        return verdict.record.messages[0]["content"]
    assert verdict is record
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("用wechat登陆", "用WeChat登录"),
        ("WECHAT、Wechat", "WeChat、WeChat"),
        ("wechats and mywechat2", "wechats and mywechat2"),
        ("open wechat.", "open WeChat."),
        ("it is IT", "it is 信息技术"),
        ("New Yorker in New York", "Old Yorker in NYC"),
        ("机器学习算法", "机器学习（ML）算法"),
        ("机器学习（ML）算法", "机器学习（ML）算法"),
        ("İwechat wechat", "İwechat WeChat"),
        ("c++ 和 C++", "C++ 和 C++"),
    ],
)
def test_variants_become_the_standard_term(tmp_path: Path, text: str, expected: str) -> None:
    lines = "variant,standard\nwechat,WeChat\n登陆,登录\nIT,信息技术\nNew York,NYC\nNew,Old\n机器学习,机器学习（ML）\nc++,C++\n"
    rule = made(tmp_path / "g.csv", lines)
    assert after(rule, text) == expected
    assert after(rule, expected) == expected


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("a,b,c\n", "pair"),
        ("a\n", "pair"),
        (",b\n", "pair"),
        ("a,b\na,c\n", "already"),
        ("a,b\nb,c\n", "standard"),
        ("variant,standard\n", "no term"),
        ("", "no term"),
        ('a,"b\n', "CSV"),
    ],
)
def test_a_bad_glossary_says_what_and_where(tmp_path: Path, lines: str, word: str) -> None:
    with pytest.raises(DataError, match=word) as raised:
        made(tmp_path / "g.csv", lines)
    assert "g.csv" in raised.value.where


def test_a_glossary_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        glossary(tmp_path / "none.csv")
    (tmp_path / "g.csv").write_bytes(b"\xff\xfe,\x00")
    with pytest.raises(DataError, match="UTF-8"):
        glossary(tmp_path / "g.csv")


def test_excel_writes_a_mark_first_and_it_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("variant,standard\n登陆,登录\n", "utf-8-sig")
    assert after(glossary(tmp_path / "g.csv"), "登陆") == "登录"


@given(text=st.text("ab字c ", max_size=40), piece=st.integers(1, 9))
def test_a_text_in_pieces_reads_as_one(tmp_path_factory: pytest.TempPathFactory, text: str, piece: int) -> None:
    path = tmp_path_factory.mktemp("g") / "g.csv"
    rule = made(path, "ab,X\nb字,Y\n字字字,Z\na b,V\n字c,W\n")
    whole = after(rule, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        assert after(rule, text) == whole
