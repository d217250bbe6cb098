"""The chain: which rules a config switches on, in which order, and what becomes of a record."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.filters import Changed, Rejection, Rule
from llmkit.data.record import Record
from llmkit.data.rules import RULES, chain, is_basic, names

BASIC = {
    "min_turns": 2,
    "max_chars": 256,
    "min_chars": 1,
    "turn": "message",
    "tools": "reject",
    "unicode": False,
    "whitespace": False,
    "simplify": False,
    "glossary": None,
    "languages": None,
    "language_by": "script",
    "max_repetition": None,
    "max_special": None,
    "urls": "keep",
    "markup": "keep",
    "refusals": "keep",
    "sensitive": None,
    "personal": None,
    "custom": [],
}
ON = {
    "unicode": True,
    "whitespace": True,
    "simplify": True,
    "languages": ["zh", "en"],
    "max_repetition": 0.3,
    "max_special": 0.3,
    "urls": "mask",
    "markup": "strip",
    "refusals": "drop",
    "personal": {"action": "mask", "kinds": ["email", "phone"]},
}


def judge(rules: Sequence[tuple[str, Rule]], record: Record) -> tuple[Record | Rejection, str, Counter[str]]:
    """What becomes of a record: it as the last rule leaves it, or why and by which rule it is dropped; and what was counted."""
    found: Counter[str] = Counter()
    for name, rule in rules:
        verdict = rule(record)
        if verdict is record:
            continue
        if isinstance(verdict, Rejection):
            return verdict, name, found
        if isinstance(verdict, Changed):
            found.update(verdict.found)
            record = verdict.record
        else:
            record = verdict
    return record, "", found


def of(*texts: str) -> Record:
    return Record([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)], "f:1")


def everything(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "g.csv").write_text("登陆,登录\n", "utf-8")
    (tmp_path / "words.txt").write_text("赌博\n", "utf-8")
    (tmp_path / "mine.py").write_text("def judge(record):\n    return 'dull' if '无聊' in str(record) else record\n", "utf-8")
    files = {
        "glossary": str(tmp_path / "g.csv"),
        "sensitive": {"words": [str(tmp_path / "words.txt")], "action": "mask"},
        "custom": [str(tmp_path / "mine.py")],
    }
    return {**BASIC, **ON, **files}


def test_everything_on_is_every_rule_in_the_order_of_the_table(tmp_path: Path) -> None:
    names = [name for name, _ in chain(everything(tmp_path))]
    assert names == [*list(RULES)[:-1], "custom:mine"]
    assert list(RULES)[-1] == "custom"


def test_basic_is_the_dialogue_filter_alone() -> None:
    assert [name for name, _ in chain(BASIC)] == ["tools", "dialogue"]
    assert is_basic(BASIC)
    changes = {**ON, "tools": "drop", "min_chars": 2, "custom": ["x.py"], "glossary": "g.csv", "sensitive": {"words": ["w"]}}
    for key, value in changes.items():
        assert not is_basic({**BASIC, key: value}), key


def test_a_bound_of_nothing_is_a_bound() -> None:
    names = [name for name, _ in chain({**BASIC, "max_repetition": 0.0, "max_special": 0.0})]
    assert names == ["tools", "dialogue", "special", "repetition"]


def test_a_record_goes_through_all_of_them(tmp_path: Path) -> None:
    rules = chain(everything(tmp_path))
    record = of("<p>怎麼登陆  ＡＢＣ？</p>", "請看 https://a.com/b ，或寫信到 me@example.com ，不要赌博。")
    verdict, name, found = judge(rules, record)
    assert isinstance(verdict, Record)
    assert not name
    first, second = (message["content"] for message in verdict.messages)
    assert first == "怎么登录 ABC？"
    assert "<URL>" in second
    assert "example.com" not in second
    assert "赌博" not in second
    assert found["email"] == found["url"] == found["simplify"] == found["glossary"] == 1


@pytest.mark.parametrize(
    ("texts", "rule", "reason"),
    [
        (("你好",), "dialogue", "bad_roles"),
        (("你好", "无聊"), "custom:mine", "custom:dull"),
        (("Привет", "Как дела"), "language", "language"),
        (("<br>", "好"), "dialogue", "empty_message"),
        (("你好", "抱歉，我无法回答这个问题。"), "refusals", "refusal"),
        (("你好", "哈" * 100), "repetition", "repetition"),
        (("你好", "★" * 20), "special", "special_characters"),
    ],
)
def test_a_drop_names_its_rule(tmp_path: Path, texts: tuple[str, ...], rule: str, reason: str) -> None:
    verdict, name, _ = judge(chain(everything(tmp_path)), of(*texts))
    assert isinstance(verdict, Rejection)
    assert (name, verdict.reason) == (rule, reason)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(lambda text: text.replace("\0", "")), max_size=4
    )
)
def test_a_chain_is_its_rules_one_after_the_other_and_pure(texts: list[str]) -> None:
    rules = chain({**BASIC, **ON})
    record, copy = of(*texts), of(*texts)
    verdict, name, found = judge(rules, record)
    assert record == copy
    state, counted = record, 0
    for one, rule in rules:
        answer = rule(state)
        if isinstance(answer, Rejection):
            assert (verdict, name) == (answer, one)
            return
        if isinstance(answer, Changed):
            counted += sum(answer.found.values())
        state = answer.record if isinstance(answer, Changed) else answer
    assert verdict == state
    assert found.total() == counted


def test_the_names_are_those_of_the_chain(tmp_path: Path) -> None:
    for spec in (BASIC, everything(tmp_path)):
        assert names(spec) == [name for name, _ in chain(spec)]
