"""Train, valid and test: families of near-duplicates dealt to the sides. Knows places and shares; nothing of files or texts.

Permuted blocks, as clinical trials use them to be fair in every stratum (Matts & Lachin 1988): the families of one source
and language are dealt in the order they come, by blocks in which each side has its share, shuffled by the seed. A family's
side depends on nothing that comes after it, so data appended later moves none that was there before; where it joins two
families, they alone move.
"""

from collections.abc import Hashable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

TRAIN, VALID, TEST = 0, 1, 2
_LARGE = 20  # members from which a family goes to train, so that no side is made of one
_BLOCK = 1000  # families in the longest block


class Shares(NamedTuple):
    """What part of the families each side holds; together 1."""

    train: float
    valid: float
    test: float


def deal(groups: Sequence[Sequence[int]], strata: Sequence[Hashable], *, shares: Shares, seed: int) -> dict[int, int]:
    """Number of each group that is not in train → VALID or TEST. `strata` has each group's stratum.

    An empty group is a family that was joined to an earlier one: its slot goes to nobody, so that all after it keep theirs.
    Train always gets a group, and a side whose share is not 0 does where one is left over: the smallest, if blocks gave none.
    """
    blocks: dict[Hashable, Iterator[int]] = {}
    held: dict[int, int] = {}
    for number, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        side = next(blocks.setdefault(stratum, _slots(shares, f"{seed}:{stratum}")))
        if side != TRAIN and 0 < len(group) < _LARGE:
            held[number] = side
    some = [number for number, group in enumerate(groups) if group]
    if held and len(held) == len(some):
        del held[max(held, key=lambda number: (len(groups[number]), held[number] == VALID, number))]
    for side, share in ((TEST, shares.test), (VALID, shares.valid)):
        free = [number for number in some if number not in held]
        if share > 0 and side not in held.values() and len(free) > 1:
            held[min(free, key=lambda number: (len(groups[number]), number))] = side
    return held


def _slots(shares: Shares, name: str) -> Iterator[int]:
    """Sides without end, block by block."""
    size = next((size for size in range(1, _BLOCK) if all(_whole(share * size) for share in shares)), _BLOCK)
    held = [TEST] * round(shares.test * size) + [VALID] * round(shares.valid * size)
    block = held + [TRAIN] * (size - len(held))
    number = 0
    while True:
        ranks = [_draw(f"{name}:{number}:{slot}") for slot in range(size)]
        yield from (block[slot] for slot in sorted(range(size), key=ranks.__getitem__))
        number += 1


def _whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _draw(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()
