"""Personal data: what is planted is found, what is clean stays. Numbers are made here, by the standards."""

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data.filters import Changed, Rejection
from llmkit.data.personal import KINDS, personal
from llmkit.data.record import Record
from llmkit.errors import UsageError
from tests.planted import MAKERS, SENTENCES

PLACEHOLDER = re.compile("<(EMAIL|PHONE|ID_CARD|BANK_CARD|IP)>")
CLEAN = Path(__file__).with_name("clean_lines.txt").read_text(encoding="utf-8").splitlines()


def record(*texts: str, rejected: str | None = None) -> Record:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return Record(messages, "f:1", rejected)


def masked(text: str) -> tuple[str, dict[str, int]]:
    verdict = personal(action="mask")(record(text))
    if isinstance(verdict, Changed):
        return verdict.record.messages[0]["content"], dict(verdict.found)
    assert isinstance(verdict, Record)
    return verdict.messages[0]["content"], {}


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if char.isdecimal() or char in "@." else char for char in text)


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_planted_is_found_as_what_it_is_and_nothing_else_is_touched(kind: str, language: str) -> None:
    rng = random.Random(f"{kind} {language}")
    for _ in range(400):
        sentence, planted = rng.choice(SENTENCES[language]), MAKERS[kind](rng)
        written = full_width(planted) if "." not in planted and rng.random() < 0.1 else planted
        assert masked(sentence.format(written)) == (sentence.format(f"<{kind.upper()}>"), {kind: 1}), written


def test_a_thousand_clean_lines_stay_clean() -> None:
    assert len(set(CLEAN)) == 1000
    assert [line for line in CLEAN if masked(line) != (line, {})] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("邮箱zhang@qq.com请联系", "邮箱<EMAIL>请联系"),
        ("ｚｈａｎｇ＠ｑｑ．ｃｏｍ", "<EMAIL>"),
        ("a@qq.com.Please answer", "<EMAIL>.Please answer"),
        ("13800138000@163.com", "<EMAIL>"),
        ("a@qq.com(13800138000)", "<EMAIL>(<PHONE>)"),
        ("１３８００１３８０００转给他", "<PHONE>转给他"),
        ("13800138000/13900139000、13700137000-13600136000", "<PHONE>/<PHONE>、<PHONE>-<PHONE>"),
        ("微信13800138000QQ同号", "微信<PHONE>QQ同号"),
        ("tel13800138000", "tel<PHONE>"),
        ("+65 6123 4567 2024年", "<PHONE> 2024年"),
        ("+44 (0)20 7946 0958 ext 5", "<PHONE> ext 5"),
        ("4111 1111 1111 1111 3个月", "<BANK_CARD> 3个月"),
        ("3782 822463 10005", "<BANK_CARD>"),
        ("http://8.8.8.8:53/x、[2001:db8::1]:443 fe80::1%eth0", "http://<IP>:53/x、[<IP>]:443 <IP>%eth0"),
        ("::ffff:10.1.2.3 10.0.0.1-10.0.0.9.", "<IP> <IP>-<IP>."),
        ("already <PHONE> and <EMAIL>", "already <PHONE> and <EMAIL>"),
    ],
)
def test_written_forms(text: str, expected: str) -> None:
    assert masked(text)[0] == expected


PIECES = st.sampled_from(
    [
        *"0123456789 -.+()@:_x号a\n", "13800138000", "(021)55558888", "+86", "+1 415-555-2671", "a@b.com", "zhang", ".com",
        "1.2.3.4", "v", "fe80::1", "2001:db8::", "4111111111111111", "110101199003074477", "11010519491231002X",
        "110105491231002", "１３８", "＠", "（", "）", "－", "<PHONE>", "0044 20 7946 0958", "010-", "62781234", "400-810-8888",
        "ab", "tel", "git@", "，",
    ]
)  # fmt: skip
MESSY = st.lists(PIECES, max_size=14).map("".join)


@settings(max_examples=600, deadline=None)
@given(MESSY)
@example("13800138000(021)55558888(021)55558888")
@example("a@b.com13800138000")
@example("1.2.3.4-1.2.3.4-1.2.3.4a@b.com")
def test_masking_twice_is_masking_once_and_counts_are_the_placeholders(text: str) -> None:
    once, found = masked(text)
    assert masked(once) == (once, {})
    added = PLACEHOLDER.findall(once)
    for kind in KINDS:
        assert added.count(kind.upper()) == text.count(f"<{kind.upper()}>") + found.get(kind, 0)


@settings(max_examples=300, deadline=None)
@given(MESSY)
def test_text_outside_the_masks_is_untouched(text: str) -> None:
    once, _ = masked(text)
    between = ".*".join(re.escape(piece) for piece in re.split("<[A-Z_]+>", once))
    assert re.fullmatch(between, text, re.DOTALL)


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSY, min_size=1, max_size=4), MESSY)
def test_the_three_actions_agree(texts: list[str], rejected: str) -> None:
    dialogue = record(*texts, rejected=rejected)
    before = [dict(message) for message in dialogue.messages]
    mask, keep, drop = (personal(action=action)(dialogue) for action in ("mask", "keep", "drop"))
    assert dialogue.messages == before
    if not isinstance(mask, Changed):
        assert mask is keep is drop is dialogue
        return
    assert keep == Changed(dialogue, mask.found)
    assert drop == Rejection("personal_data", ", ".join(mask.found))
    each = [masked(text) for text in [*texts, rejected]]
    assert [message["content"] for message in mask.record.messages] + [mask.record.rejected] == [text for text, _ in each]
    assert mask.found == {kind: sum(found.get(kind, 0) for _, found in each) for kind in mask.found}


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    verdict = personal(action="mask", kinds=["ip"])(record("zhang@qq.com at 10.0.0.1", "13800138000"))
    assert isinstance(verdict, Changed)
    assert [message["content"] for message in verdict.record.messages] == ["zhang@qq.com at <IP>", "13800138000"]


def test_an_unknown_kind_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="passport"):
        personal(action="mask", kinds=["email", "passport"])


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1 ",
        "a@",
        "x@a.",
        "a-",
        "1.",
        "1:",
        "13800138000",
        "13800138000-",
        "(021)55558888",
        "+12 34 ",
        "fe80::1 ",
        "4111 ",
        "(1",
        "86",
        "a@b.com1.2.3.4",
        "11010519491231002X",
    ],
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    began = time.perf_counter()
    masked(unit * (40_000 // len(unit)) + "@b.com")
    assert time.perf_counter() - began < 5  # 0.1 s; quadratic would be minutes
