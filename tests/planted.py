"""Personal data to plant in tests: each kind made by its own standard, and sentences to put it in."""

import random
import re

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
