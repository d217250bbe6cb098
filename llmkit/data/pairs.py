"""Preference pairs: a better and a worse answer to one prompt. Knows records; nothing of models or files.

A record whose `rejected` is filled already is a pair and passes through whatever makes them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from llmkit.data.near import jaccard, normalise, shingles
from llmkit.data.record import Record
from llmkit.errors import DataError

NEAR_EQUAL = 0.9
MOST_PER_PROMPT = 3  # a prompt that many people rated must not outweigh the others


class Paired(NamedTuple):
    """Records that have a rejected answer, and how many of those given stand in no pair."""

    pairs: list[Record]
    unpaired: int


class Review(NamedTuple):
    """Pairs that can teach something, and what is doubtful about them.

    `equal`: how many were dropped, as both answers are the same but for white space. `near_equal`: how many of `pairs` have
    answers of Jaccard similarity ≥ 0.9 over normalised character 3-shingles. `longer`: those of `pairs` whose rejected
    answer is over the bound, the worst first.
    """

    pairs: list[Record]
    equal: int
    near_equal: int
    longer: list[Record]


class _Rival(NamedTuple):
    """A rated answer; compares by rating, then by what no order of records changes."""

    score: float
    id: str
    source: str
    place: int


def pair_by_rating(records: Sequence[Record]) -> Paired:
    """Pair the best answer to each prompt with worse ones: the chosen one's score is always above the rejected one's.

    A prompt is all messages but the last, normalised. Each prompt gives at most 3 pairs, with its worst answers; where
    several are best they take turns. Which pairs there are does not depend on the order of records; each stands where its
    chosen answer stood. An answer without a score, or without one to be compared with, is in no pair.
    """
    worse_than: dict[int, list[int]] = {}
    for rivals in _rivals(records):
        for better, worse in _matches(rivals, records):
            worse_than.setdefault(better, []).append(worse)
    pairs: list[Record] = []
    for place, record in enumerate(records):
        if record.rejected is not None:
            pairs.append(record)
        losers = worse_than.get(place, [])
        pairs += [record._replace(rejected=_answer(records[loser]), pair="rating") for loser in losers]
    used = set(worse_than).union(*worse_than.values())
    given = sum(record.rejected is not None for record in records)
    return Paired(pairs, len(records) - given - len(used))


def _rivals(records: Sequence[Record]) -> Iterable[list[_Rival]]:
    """Rated answers to one prompt, prompt by prompt."""
    found: dict[tuple[tuple[str, str], ...], list[_Rival]] = defaultdict(list)
    for place, record in enumerate(records):
        if record.rejected is None and record.score is not None:
            prompt = tuple((message["role"], normalise(message["content"])) for message in record.messages[:-1])
            found[prompt].append(_Rival(record.score, record.id, record.source, place))
    return found.values()


def _matches(rivals: Sequence[_Rival], records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """(place of the chosen answer, place of the rejected one)."""
    ranked = sorted(rivals)
    best = [rival for rival in ranked if rival.score == ranked[-1].score]
    made = 0
    # The widest gaps first: there the raters are surest.
    for worse in ranked[: len(ranked) - len(best)]:
        better = best[made % len(best)]
        if _same(_answer(records[better.place]), _answer(records[worse.place])):
            continue
        yield better.place, worse.place
        made += 1
        if made == MOST_PER_PROMPT:
            return


def shuffle_rejected(records: Sequence[Record], seed: int, *, others: Iterable[Record] = ()) -> Iterator[Record]:
    """Give each record without `rejected` the last answer of another dialogue; the rest pass unchanged, in order.

    A given answer never equals the record's own after normalisation. Each depends on the seed and on which records
    there are, not on their order. Such pairs teach "answer this question", not taste.

    Args:
        records: what to fill.
        seed: decides who gets what.
        others: dialogues whose answers may be given too.

    Raises:
        DataError: all the answers are the same.
    """
    answers: dict[str, str] = {}
    for record in (*records, *others):
        text = _answer(record)
        key = normalise(text)
        # Of spellings of one answer the smallest stands for all, whatever the order.
        answers[key] = min(text, answers.get(key, text))
    pool = sorted(answers)
    for record in records:
        if record.rejected is not None:
            yield record
            continue
        if len(pool) < 2:
            raise DataError(
                "no rejected answers can be made by shuffling: all dialogues end with the same answer",
                code="LK0209",
                next="add dialogues, or use data.pairs.rejected: generate",
            )
        start = int.from_bytes(sha256(f"{seed}:{record.id}".encode()).digest()[:8]) % len(pool)
        choice = pool[start] if pool[start] != normalise(_answer(record)) else pool[(start + 1) % len(pool)]
        yield record._replace(rejected=answers[choice], pair="shuffle")


def review(records: Iterable[Record], *, max_rejected_ratio: float) -> Review:
    """Drop pairs of equal answers, and find those that are nearly equal or teach length.

    Args:
        records: each with its rejected answer.
        max_rejected_ratio: characters of the rejected answer over those of the chosen one; ORPO and DPO learn length.
    """
    pairs: list[Record] = []
    equal = near_equal = 0
    longer: list[tuple[float, str, Record]] = []
    for record in records:
        chosen, rejected = _answer(record), record.rejected or ""
        if _same(chosen, rejected):
            equal += 1
            continue
        pairs.append(record)
        near_equal += nearly_equal(record)
        if (ratio := length_ratio(record)) > max_rejected_ratio:
            longer.append((-ratio, record.source, record))
    longer.sort(key=lambda one: one[:2])
    return Review(pairs, equal, near_equal, [record for _, _, record in longer])


def nearly_equal(record: Record) -> bool:
    """Whether the two answers of a pair are `NEAR_EQUAL` alike, or more: Jaccard similarity of 3-character shingles."""
    chosen, rejected = normalise(_answer(record)), normalise(record.rejected or "")
    return jaccard(shingles(chosen), shingles(rejected)) >= NEAR_EQUAL


def length_ratio(record: Record) -> float:
    """Characters of the rejected answer over those of the chosen one."""
    return len(record.rejected or "") / max(1, len(_answer(record)))


def _same(first: str, second: str) -> bool:
    # A correction of case or punctuation is still a correction.
    return first.split() == second.split()


def _answer(record: Record) -> str:
    return record.messages[-1]["content"]
