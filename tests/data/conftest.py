"""The oracle for leaks, from the definition alone."""

from collections.abc import Callable, Sequence

import pytest

from llmkit.data.record import Record

BruteLeaks = Callable[[Sequence[Record], Sequence[Record], float], list[tuple[Record, Record]]]


@pytest.fixture(scope="session")
def brute_leaks() -> BruteLeaks:
    """All near-duplicate pairs between training and held-out records: every pair, every view, plain Python sets."""

    def windows(record: Record, roles: Sequence[str]) -> set[str]:
        said = "".join(m["content"] for role in roles for m in record.messages if m["role"] == role)
        text = "".join(one.lower() for one in said if one.isalnum())
        return {text[i : i + 3] for i in range(len(text) - 2)} or ({text} if text else set())

    def views(record: Record) -> list[set[str]]:
        return [windows(record, roles) for roles in (("user", "assistant"), ("user",), ("assistant",))]

    def find(train: Sequence[Record], held: Sequence[Record], threshold: float) -> list[tuple[Record, Record]]:
        mine, theirs = [(one, views(one)) for one in train], [(one, views(one)) for one in held]
        return [
            (one, two)
            for one, ours in mine
            for two, other in theirs
            if any(a and b and len(a & b) / len(a | b) >= threshold for a, b in zip(ours, other, strict=True))
        ]

    return find
