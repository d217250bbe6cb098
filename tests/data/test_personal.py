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

PLACEHOLDER = re.compile("<(EMAIL|PHONE|ID_CARD|BANK_CARD|IP)>")
CLEAN = Path(__file__).with_name("clean_lines.txt").read_text(encoding="utf-8").splitlines()
SENTENCES = {
    "zh": [
        "我的是{}请记一下",
        "{}就是了",
        "联系方式：{}。",
        "发到{}，谢谢",
        "（{}）",
        "不是{}吗？",
        "打了三次{}都不行",
        "就写\n{}\n吧",
    ],
    "en": [
        "Mine is {}, please note.",
        "{} is the one",
        "Use {}.",
        "(see {})",
        "Was it {}?",
        'He wrote "{}" twice 3 days ago',
        "it's {}!",
    ],
}


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


# ---- makers, each by its own standard


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def luhn(rng: random.Random, prefix: str, length: int) -> str:
    body = prefix + digits(rng, length - 1 - len(prefix))
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(body))]
    return body + str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def bank_card(rng: random.Random) -> str:
    prefixes = [
        ("62", 16),
        ("622202", 19),
        ("4", 16),
        ("53", 16),
        ("2345", 16),
        ("3712345699", 15),
        ("3530", 16),
        ("6011", 16),
        ("955880", 19),
    ]
    number = luhn(rng, *rng.choice(prefixes))
    separator = rng.choice(["", "", " ", "-"])
    return separator.join(re.findall(".{1,4}", number)) if len(number) != 15 else number


def id_card(rng: random.Random) -> str:
    region = rng.choice(["110101", "310115", "440305", "510104", "650102", "810000"])
    if rng.random() < 0.2:
        return region + f"{rng.randint(30, 99)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}" + digits(rng, 3)
    body = region + f"{rng.randint(1930, 2020)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}" + digits(rng, 3)
    # ISO 7064 MOD 11-2: the whole, by Horner's rule, is 1 modulo 11.
    rest = 0
    for digit in body:
        rest = (rest + int(digit)) * 2 % 11
    check = (12 - rest) % 11
    return body + ("Xx"[rng.randrange(2)] if check == 10 else str(check))


def email(rng: random.Random) -> str:
    local = rng.choice(["zhang", "li.si", "wang_wu", "j.doe+news", "13912345678", "a-b", "x1", "MaLi"])
    domain = rng.choice(["qq.com", "163.com", "mail.example.org", "uni.edu.cn", "my-firm.co.uk", "GMAIL.COM", "a1.b2.io"])
    return f"{local}@{domain}"


def phone(rng: random.Random) -> str:
    mobile = ("1" + rng.choice("3456789") + digits(rng, 1), digits(rng, 4), digits(rng, 4))
    line = (rng.choice("2345678") + digits(rng, 3), digits(rng, 4))
    area = rng.choice(["010", "021", "0755", "0571"])
    us = (rng.choice(["415", "212", "650"]), rng.choice("2345678") + digits(rng, 2), digits(rng, 4))
    return rng.choice(
        [
            "".join(mobile),
            "-".join(mobile),
            " ".join(mobile),
            "+86" + "".join(mobile),
            "+86 " + " ".join(mobile),
            "0086-" + "".join(mobile),
            "86-" + "".join(mobile),
            f"{area}-{''.join(line)}",
            f"{area}-{' '.join(line)}",
            f"({area}) {'-'.join(line)}",
            f"（{area}）{''.join(line)}",
            f"+1 {'-'.join(us)}",
            f"+1{''.join(us)}",
            f"({us[0]}) {us[1]}-{us[2]}",
            f"+44 20 {digits(rng, 4)} {digits(rng, 4)}",
            f"+33 {rng.randint(1, 9)} {' '.join(digits(rng, 2) for _ in range(4))}",
            f"+852 {rng.choice('569')}{digits(rng, 3)} {digits(rng, 4)}",
        ]
    )


def ip(rng: random.Random) -> str:
    four = ".".join(str(rng.randint(1, 254)) for _ in range(3))
    six = f"{rng.randint(0x2001, 0x3FFE):x}:{rng.randint(1, 0xFFFF):x}"
    return rng.choice(
        [f"{rng.choice([8, 10, 114, 192, 203])}.{four}", f"{six}::{rng.randint(1, 0xFFFF):x}", f"fe80::{rng.randint(1, 999)}"]
    )


MAKERS = {"email": email, "phone": phone, "id_card": id_card, "bank_card": bank_card, "ip": ip}


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
