"""One cleaning report with something of everything, as `llmkit clean` hands it over."""

from typing import Any

import pytest


def _example(number: int, text: str, detail: str = "") -> dict[str, str]:
    return {"source": f"chats.jsonl:{number}", "id": f"{number:016x}", "text": text, "detail": detail}


def _rule(name: str, title: str, seen: int, removed: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "title": title, "seen": seen, "removed": removed, "changed": 0, "reasons": [], "changes": []} | more


def _rules() -> list[dict[str, Any]]:
    long = "user: 请介绍一下长城的历史。\nassistant: 长城始建于春秋战国时期，历经两千多年的修筑……"
    short = [
        {
            "reason": "too_few_turns",
            "count": 902,
            "examples": [_example(n, "user: 你好\nassistant: 你好！", "2 messages") for n in range(3, 13)],
        },
        {"reason": "message_too_long", "count": 138, "examples": [_example(40, long, "message 2 has 1,204 characters")]},
    ]
    words = [{"source": "chats.jsonl:7", "before": "user: 請問電腦軟體怎麼安裝？", "after": "user: 请问电脑软件怎么安装？"}]
    arabic = [
        {"reason": "language", "count": 61, "examples": [_example(81, "user: مرحبا، كيف حالك؟\nassistant: بخير، شكرا!", "ar")]}
    ]
    refusal = [{"reason": "refusal", "count": 22, "examples": [_example(90, "As an AI language model, I cannot…")]}]
    copies = [
        {
            "reason": "duplicate",
            "count": 9,
            "examples": [_example(99, "user: hi\nassistant: hello", "says the same as chats.jsonl:4")],
        }
    ]
    near = [{"reason": "near_duplicate", "count": 33, "examples": [_example(120, long, "0.91 like chats.jsonl:40")]}]
    return [
        _rule("unreadable", "a line must hold one dialogue", 2676),
        _rule("simplify", "Traditional characters become Simplified", 2676, changed=418, changes=words),
        _rule("dialogue", "at least 3 messages, none over 256 characters", 2676, 1040, reasons=short),
        _rule("language", "mostly Chinese or English", 1636, 61, reasons=arabic),
        _rule("refusals", "no answer that only refuses", 1575, 22, reasons=refusal),
        _rule("personal_data", "e-mail, phone, ID and bank card, IP", 1553, changed=57),
        _rule("exact_duplicates", "no dialogue twice", 1553, 9, reasons=copies),
        _rule("near_duplicates", "none like another, from a similarity of 0.8", 1544, 33, reasons=near),
        _rule("decontamination", "nothing that the test set holds", 1511, 3),
    ]


@pytest.fixture
def cleaning_report() -> dict[str, Any]:
    members = [{"id": f"{n:016x}", "source": f"chats.jsonl:{n}", "similarity": 1 - n / 100} for n in range(8)]
    return {
        "name": "chats",
        "sources": [
            {"label": "chats.jsonl", "bytes": 1_204_332, "read": 2000},
            {"label": "客服对话_" + "很长的文件名_" * 30 + ".jsonl", "bytes": 99, "read": 676},
        ],
        "read": 2676,
        "kept": 1508,
        "rejected": 1168,
        "quarantined": 0,
        "seconds": 1.2,
        "rules": _rules(),
        "warnings": ["rule dialogue removed 39 % of what it saw", "规则 language 删除了 chats.jsonl 的一半"],
        "distributions": {
            "turns": {
                "unit": "messages in a dialogue",
                "buckets": ["1", "2", "3–4", "5–8", "9–16", "17 and more"],
                "before": [120, 790, 904, 611, 201, 50],
                "after": [0, 0, 850, 480, 150, 28],
            },
            "characters": {
                "unit": "characters in a dialogue",
                "buckets": ["0–63", "64–127", "128–255", "256–511", "512 and more"],
                "before": [310, 640, 920, 610, 196],
                "after": [12, 402, 640, 390, 64],
            },
            "tokens": {
                "unit": "tokens in a dialogue",
                "note": "estimated: 0.6 a Chinese character",
                "buckets": ["0–31", "32–63", "64–127", "128 and more"],
                "before": [300, 700, 1200, 476],
                "after": [10, 500, 800, 198],
            },
            "languages": {"unit": "", "buckets": ["zh", "en", "other"], "before": [1900, 700, 76], "after": [1180, 328, 0]},
        },
        "sampled": None,
        "clusters": [
            {
                "size": 21,
                "kept": "00000000000000a1",
                "text": "user: 你好，请问几点开门？\nassistant: 九点。",
                "members": members,
            },
            {"size": 2, "kept": "00000000000000b2", "text": "user: Where is my parcel?", "members": members[:1]},
        ],
        "personal": {"action": "mask", "kinds": {"email": 31, "phone": 18, "id_card": 2, "bank_card": 1, "ip": 5}},
        "sensitive": {"action": "count", "count": 12},
        "split": {
            "train": 1206,
            "valid": 151,
            "test": 151,
            "families": 1490,
            "near": 0.7,
            "strata": [
                {"source": "chats.jsonl", "language": "zh", "train": 944, "valid": 118, "test": 118},
                {"source": "chats.jsonl", "language": "en", "train": 262, "valid": 33, "test": 33},
            ],
            "leaks": 0,
            "checked": "every pair of train × held-out, exactly, in 3 views",
            "moved": 4,
        },
        "config": {"min_turns": 3, "max_chars": 256, "split": {"train": 0.8, "near": 0.7}, "languages": ["zh", "en"]},
        "versions": {"llmkit": "0.1.0", "python": "3.12.3"},
    }
