"""Small reports on disk, as `llmkit eval` writes them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "model",
    "answers",
    "a",
    "question",
    "about",
    "paris",
    "and",
    "weather",
    "in",
    "spring",
    "with",
    "one",
    "short",
    "line",
]


def reference(number: int) -> str:
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in (1, 2, 3, 5, 7, 11, 13)) + f" {number}"


def worse(number: int) -> str:
    return " ".join(reference(number).split()[:4])


def write_report(
    folder: Path,
    answers: Mapping[str, Callable[[int], str]],
    *,
    samples: int = 40,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    change: Callable[[list[dict[str, Any]]], Sequence[object]] = lambda lines: lines,
    **report: Any,
) -> Path:
    """A report whose models answer sample number i with `answers[name](i)`; `change` may spoil its samples."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "id": f"id{index}",
            "prompt": [{"role": "user", "content": f"question {index}?"}],
            "reference": reference(index),
            "answers": {name: answer(index) for name, answer in answers.items()},
        }
        for index in range(samples)
    ]
    whole = {
        "format": 1,
        "reference": next(iter(answers)),
        "settings": {"decoding": "greedy", "max_new_tokens": 48, "seed": 0},
        "signatures": {"bleu": "nrefs:1|tok:zh"},
        "models": {name: dict((rows or {}).get(name, {})) for name in answers},
        **report,
    }
    (folder / "report.json").write_text(json.dumps(whole), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in change(lines))
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    return folder
