"""Rejected answers for dialogues that have none. Knows records; nothing of models or files."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from llmkit.data.dedup import normalise
from llmkit.data.record import Record
from llmkit.errors import DataError


def shuffle_rejected(records: Sequence[Record], seed: int) -> Iterator[Record]:
    """Give each record without `rejected` the last answer of another dialogue; the rest pass unchanged, in order.

    A given answer never equals the record's own after normalisation. Each depends on the seed and on which records
    there are, not on their order. Such pairs teach "answer this question", not taste.

    Raises:
        DataError: all the answers are the same.
    """
    answers: dict[str, str] = {}
    for record in records:
        text = record.messages[-1]["content"]
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
                next="add dialogues, or use data.pairs.rejected: generate",
            )
        start = int.from_bytes(sha256(f"{seed}:{record.id}".encode()).digest()[:8]) % len(pool)
        own = normalise(record.messages[-1]["content"])
        choice = pool[start] if pool[start] != own else pool[(start + 1) % len(pool)]
        yield record._replace(rejected=answers[choice])
