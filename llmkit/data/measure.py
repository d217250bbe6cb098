"""How long dialogues are and what language they are in, for the report. Knows records."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llmkit.data.language import language
from llmkit.data.record import Record

ESTIMATE = "estimated: one for each character beyond ASCII, one for every four within"


class Measure(NamedTuple):
    """One dialogue: messages, characters and estimated tokens in all, its language, and its place among the kept."""

    place: int
    turns: int
    characters: int
    tokens: int
    language: str


class Measures(list[Measure]):
    """What was measured, dialogue by dialogue."""

    def add(self, record: Record, *, place: int = -1) -> None:
        texts = [message["content"] for message in record.messages]
        joined = "\n".join(texts)
        turns = sum(message["role"] != "system" for message in record.messages)
        self.append(Measure(place, turns, sum(map(len, texts)), tokens(joined), language(joined)))


def tokens(text: str) -> int:
    """About how many tokens a chat model's tokenizer makes of a text; see `ESTIMATE`."""
    plain = len(text.encode("ascii", "ignore"))
    return len(text) - plain + -(-plain // 4)


_EDGES = {
    "turns": (1, 2, 3, 4, 6, 8, 12, 20, 50),
    "characters": (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    "tokens": (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
}


def distributions(before: Sequence[Measure], after: Sequence[Measure]) -> dict[str, dict[str, object]]:
    """For the report: buckets with how many dialogues fall into each, before and after."""
    found: dict[str, dict[str, object]] = {}
    for name, edges in _EDGES.items():
        buckets = list(_buckets(edges))
        counts = [_counts([getattr(one, name) for one in side], edges) for side in (before, after)]
        found[name] = {
            "unit": "messages" if name == "turns" else name,
            "buckets": buckets,
            "before": counts[0],
            "after": counts[1],
        }
    found["tokens"]["note"] = ESTIMATE
    names = sorted({one.language for one in before} | {one.language for one in after})
    tallies = [[sum(one.language == name for one in side) for name in names] for side in (before, after)]
    found["languages"] = {"unit": "dialogues", "buckets": names, "before": tallies[0], "after": tallies[1]}
    return found


def _buckets(edges: tuple[int, ...]) -> Iterator[str]:
    low = 0
    for high in edges:
        yield f"{low}" if low == high else f"{low}–{high}"
        low = high + 1
    yield f"{low} or more"


def _counts(values: list[int], edges: tuple[int, ...]) -> list[int]:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[sum(value > edge for edge in edges)] += 1
    return counts
