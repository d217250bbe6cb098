"""The oracle for leaks, shared by the tests of the split."""

import re
from collections.abc import Callable

import pytest

from llmkit.data.record import Record
from llmkit.data.split import Sides

BruteLeaks = Callable[[Sides, float], list[tuple[Record, Record]]]


@pytest.fixture(scope="session")
def brute_leaks() -> BruteLeaks:
    """All near-duplicate pairs between train and the rest, from the definition alone: every pair, every view."""

    def windows(record: Record, role: str) -> set[str]:
        texts = [m["content"].lower() for m in record.messages if role in ("any", m["role"]) and m["role"] != "system"]
        text = " ".join(re.sub(r"[\W_]", "", text) or re.sub(r"\s", "", text) for text in texts)
        return {text[i : i + 3] for i in range(len(text) - 2)} or {text}

    def views(record: Record) -> list[set[str]]:
        return [windows(record, role) for role in ("any", "user", "assistant")]

    def find(sides: Sides, threshold: float) -> list[tuple[Record, Record]]:
        trained = [(record, views(record)) for record in sides.train]
        held = [(record, views(record)) for record in sides.valid + sides.test]
        return [
            (one, two)
            for one, mine in trained
            for two, theirs in held
            if any(len(a & b) / len(a | b) >= threshold for a, b in zip(mine, theirs, strict=True))
        ]

    return find
