"""Train, valid and test, with what is nearly the same on one side. Knows records and shares; nothing of files."""

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from llmkit.data.dedup import Leak, families, leaks
from llmkit.data.near import Families
from llmkit.data.record import Record
from llmkit.errors import FidelityError

_REPAIRS = 10
# A side takes families of at most this share of it, then larger ones if it is not full: many small beat one large.
_FAMILY_SHARES = (0.05, 0.2, 1.0)


class Sides(NamedTuple):
    """The three sides, each in an order that depends on the seed alone, and in how many families the records fell."""

    train: list[Record]
    valid: list[Record]
    test: list[Record]
    families: int


class Shares(NamedTuple):
    """What part of the records each side should hold; together 1."""

    train: float
    valid: float
    test: float


def split(records: Sequence[Record], *, shares: Shares, near: float, seed: int) -> Sides:
    """Deal families of near-duplicates (Jaccard ≥ `near`, see `dedup`) to the sides; the order of `records` is no matter.

    Valid and test take whole families until their share is reached, and hold at least one record each where their share
    is not 0 and there are families enough; the largest families and all the rest go to train. Proved leak-free: the
    finished sides are compared exactly, and a pair that MinHash missed becomes one family before they are dealt again.

    Raises:
        FidelityError: near-duplicates still stand on two sides.
    """
    ordered = sorted(records, key=lambda record: (_rank(record.id, seed), record.to_json()))
    names = [record.id for record in ordered]
    found = families(ordered, near)
    for _ in range(_REPAIRS):
        groups = found.groups()
        train, valid, test = _deal(groups, shares, seed=seed, names=names)
        held = valid + test
        missed = list(leaks([ordered[place] for place in train], [ordered[place] for place in held], near))
        if not missed:
            drawn = [[ordered[place] for place in sorted(side)] for side in (train, valid, test)]
            return Sides(train=drawn[0], valid=drawn[1], test=drawn[2], families=len(groups))
        _join(found, missed, train, held)
    worst = max(missed, key=lambda leak: leak.similarity)
    raise FidelityError(
        f"{len(missed)} near-duplicates of training dialogues stand in valid or test, one {worst.similarity:.2f} alike",
        next="raise split.near, or report this with the data",
    )


def _join(found: Families, missed: Sequence[Leak], train: Sequence[int], held: Sequence[int]) -> None:
    for leak in missed:
        found.join(train[leak.left], held[leak.right])


def _deal(
    groups: Sequence[Sequence[int]], shares: Shares, *, seed: int, names: Sequence[str]
) -> tuple[list[int], list[int], list[int]]:
    """Places of the records of train, valid and test."""
    # A family is drawn by the smallest name in it, which no order of records changes.
    pool = sorted(groups, key=lambda group: _rank(min(names[place] for place in group), seed))
    total = sum(len(group) for group in pool)
    test, pool = _fill(pool, _quota(shares.test, total))
    valid, pool = _fill(pool, _quota(shares.valid, total))
    return [place for group in pool for place in group], valid, test


def _quota(share: float, total: int) -> int:
    return max(1, round(share * total)) if share > 0 else 0


def _fill(pool: list[Sequence[int]], quota: int) -> tuple[list[int], list[Sequence[int]]]:
    """Move families of together at most `quota` records out of `pool`, but never its last one.

    Where each is larger than that, the smallest goes if it is at most twice the quota.
    """
    side: list[int] = []
    for share in _FAMILY_SHARES:
        rest: list[Sequence[int]] = []
        for place, group in enumerate(pool):
            room = quota - len(side)
            left_over = rest or place + 1 < len(pool)
            if left_over and len(group) <= min(room, max(1, int(share * quota))):
                side.extend(group)
            else:
                rest.append(group)
        pool = rest
    smallest = min(pool, key=len, default=())
    if quota and not side and len(pool) > 1 and len(smallest) <= 2 * quota:
        return list(smallest), [group for group in pool if group is not smallest]
    return side, pool


def _rank(name: str, seed: int) -> bytes:
    return sha256(f"{seed}:{name}".encode()).digest()
