"""The first pass: batches in, one file of different dialogues out. Knows the counts; nothing of near-duplicates or sides.

In constant memory but for the set of what was seen, 8 bytes a dialogue, and, where a second pass follows (`arrange`), what
that one needs: MinHash keys, up to 0.5 kB a dialogue.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from llmkit.data import dedup
from llmkit.data.measure import Measures
from llmkit.data.seen import Seen
from llmkit.data.sieve import Example, Spec, Tally, excerpt
from llmkit.data.store import Store
from llmkit.data.workers import Sifted

SIDES = ("train", "valid", "test")
EXACT = "exact duplicates"
_SIFTED = ".sifted.jsonl"
_BUFFER_BYTES = 2**16


@dataclass
class Outcome:
    """What became of everything: counts add up, `read` = `sides` together + `rejected` + `quarantined`."""

    read: int = 0
    rejected: int = 0
    quarantined: int = 0
    first_bad: tuple[str, str] = ("", "")
    with_rejected: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    before: Measures = field(default_factory=Measures)
    after: Measures = field(default_factory=Measures)
    sides: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))

    @property
    def kept(self) -> int:
        return sum(self.sides.values())


class Sifting:
    """The first pass: takes batches in order, drops what was said before, writes the rest to one file."""

    def __init__(self, out: Path, spec: Spec, *, exact: bool, whole: bool) -> None:
        """`whole`: a second pass follows, which needs to find single dialogues."""
        self.outcome = Outcome()
        self.path = out / _SIFTED
        self._kept = self.path.open("wb", buffering=0)
        self._rejected = (out / "rejected.jsonl").open("wb", buffering=_BUFFER_BYTES)
        self._quarantined = (out / "quarantined.jsonl").open("wb", buffering=_BUFFER_BYTES)
        self._seen = Seen() if exact else None
        self._spec, self.whole = spec, whole
        self.count = 0
        self.lengths: list[NDArray[np.uint32]] = []
        self.paired: list[NDArray[np.bool_]] = []
        self.keys: list[NDArray[np.uint64]] = []
        self.near: list[NDArray[np.uint32]] = []
        self.views: dict[str, list[NDArray[np.uint32]]] = {name: [] for name in dedup.VIEWS}
        self.strata: list[NDArray[np.uint32]] = []
        self.names: dict[tuple[str, str], int] = {}

    def take(self, sifted: Sifted) -> None:
        task, batch = sifted
        outcome = self.outcome
        fresh = self._seen.add(batch.keys) if self._seen else np.ones(len(batch.keys), dtype=bool)
        self._rejected.write(batch.rejected_lines)
        self._quarantined.write(batch.quarantined_lines)
        if fresh.all():
            _write(self._kept, memoryview(batch.kept))
        else:
            self._drop_repeated(batch.kept, batch.lengths, batch.keys, fresh)
        outcome.read += batch.read
        outcome.rejected += batch.rejected
        outcome.quarantined += batch.quarantined
        outcome.first_bad = outcome.first_bad if outcome.first_bad[0] else batch.first_bad
        outcome.by_source[task.label] = outcome.by_source.get(task.label, 0) + batch.read
        outcome.tally.add(batch.tally)
        outcome.before.extend(batch.before)
        places = np.cumsum(fresh) - 1 + self.count
        outcome.after.extend(one._replace(place=int(places[one.place])) for one in batch.after if fresh[one.place])
        self.count += int(fresh.sum())
        outcome.with_rejected += int((batch.paired & fresh).sum())
        if self.whole:
            self.paired.append(batch.paired[fresh])
            self.lengths.append(batch.lengths[fresh])
            self.keys.append(batch.keys[fresh])
            if batch.near is not None:
                self.near.append(batch.near[fresh])
            for name, keys in batch.views.items():
                self.views[name].append(keys[fresh])
            if self._spec.languages:
                codes = [self.names.setdefault((task.stratum, one), len(self.names)) for one in batch.languages]
                self.strata.append(np.array(codes, dtype=np.uint32)[fresh])

    def _drop_repeated(
        self, kept: bytes, lengths: NDArray[np.uint32], keys: NDArray[np.uint64], fresh: NDArray[np.bool_]
    ) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        whole = memoryview(kept)
        done = 0
        for place in np.flatnonzero(~fresh).tolist():
            end = int(ends[place])
            start = end - int(lengths[place])
            _write(self._kept, whole[done:start])
            self.reject(EXACT, "duplicate", f"says the same as {int(keys[place]):016x}", kept[start:end])
            done = end
        _write(self._kept, whole[done:])

    def reject(self, rule: str, reason: str, detail: str, line: bytes) -> None:
        """Drop a canonical line that was sifted."""
        raw = orjson.loads(line)
        entry = {"source": raw["source"], "rule": rule, "reason": reason, "detail": detail, "id": raw["id"]}
        entry["record"] = orjson.Fragment(line[:-1])
        self._rejected.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self.outcome.rejected += 1
        self.outcome.tally.remove(rule, reason, lambda: Example(raw["source"], excerpt(raw["messages"]), detail))

    def __enter__(self) -> "Sifting":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in (self._kept, self._rejected, self._quarantined):
            stream.close()

    def store(self) -> Store:
        return Store(self.path, self.lengths, self.keys)


def _write(stream: BinaryIO, data: memoryview) -> None:
    """All of it: an unbuffered stream may take a part only."""
    while data:
        data = data[stream.write(data) :]
