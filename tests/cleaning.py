"""What tests of cleaning share: dialogues that are all different, files of them, and one run of the step."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmkit.artifact import Facts, Kind, foreign
from llmkit.steps import clean

SIDES = ("train", "valid", "test")
OUTPUTS = (*(f"{name}.jsonl" for name in (*SIDES, "rejected", "quarantined")), "report.json", "report.html")

LETTERS = {
    "zh": "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
    "面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本"
    "去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比"
    "或",
    "en": "abcdefghijklmnopqrstuvwxyzetaoinshrdluetaoin",
}


def text(rng: random.Random, length: int, language: str = "zh") -> str:
    """Random letters that look like a sentence to the rules; for English, words of two to eight letters."""
    if language == "zh":
        return "".join(rng.choices(LETTERS["zh"], k=length)) + "。"
    words: list[str] = []
    while sum(map(len, words)) < length:
        words.append("".join(rng.choices(LETTERS["en"], k=rng.randint(2, 8))))
    return " ".join(words) + "."


def chat(rng: random.Random, language: str = "zh", *, turns: int = 4, length: int = 40) -> list[dict[str, str]]:
    """Messages like no others."""
    return talk(*(text(rng, length, language) for _ in range(turns)))


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": one} for number, one in enumerate(texts)]


def line(value: object) -> bytes:
    """As one line: bytes as they are, a list as the messages of a dialogue, else as JSON."""
    if isinstance(value, bytes):
        return value + b"\n"
    return json.dumps({"messages": value} if isinstance(value, list) else value, ensure_ascii=False).encode() + b"\n"


def write(path: Path, values: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(line, values)))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_bytes().splitlines()]


def run(out: Path, *sources: Path, **options: Any) -> Facts:
    """The clean step on files."""
    out.mkdir()
    inputs = {f"source.{number}": foreign(path, Kind.SOURCE) for number, path in enumerate(sources)}
    return clean.run(clean.Config(**options), inputs, out)


def kept(out: Path) -> dict[str, str]:
    """Source of each dialogue that stayed → its side."""
    return {one["source"]: side for side in SIDES for one in lines_of(out / f"{side}.jsonl")}


def edited(
    rng: random.Random, messages: Sequence[dict[str, str]], alike: Callable[[str], float], target: float
) -> list[dict[str, str]]:
    """The dialogue with characters replaced until `alike` of all its words is at most `target`, or just before."""
    texts = [list(one["content"]) for one in messages]
    before = [list(one) for one in texts]
    while alike(said(texts)) > target:
        before = [list(one) for one in texts]
        words = rng.choice(texts)
        words[rng.randrange(len(words))] = rng.choice(LETTERS["zh"])
    return talk(*("".join(one) for one in before))


def said(texts: Sequence[Sequence[str]]) -> str:
    """The user's words before the assistant's."""
    return "".join("".join(one) for one in [*texts[::2], *texts[1::2]])


def shingles(words: str) -> set[str]:
    """Windows of three letters or digits, in lower case, from the definition alone."""
    letters = "".join(one.lower() for one in words if one.isalnum())
    return {letters[start : start + 3] for start in range(len(letters) - 2)} or ({letters} if letters else set())


def jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / (len(first | second) or 1)
