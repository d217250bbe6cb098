"""One piece of a data file through the rules: what is kept, dropped and set aside, and why. The same in every process.

A pure function of its task and its spec, so a piece gives the same batch whoever reads it, here, in a pool or on a Ray
cluster. What needs to know the other pieces (duplicates, the split) is not decided here.
"""

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from xxhash import xxh3_64_hexdigest

from llmkit.data import dedup, formats, pairs, reading, rules
from llmkit.data.filters import Changed, Rejection, Rule
from llmkit.data.language import language
from llmkit.data.measure import Measures
from llmkit.data.record import Message, Record

EXAMPLES = 10
_PRIVATE, _HIDDEN = frozenset(("personal", "sensitive")), "(not shown here)"  # a report is passed round
QUARANTINE = "unreadable"
PAIRS, NEARLY_EQUAL, LONGER = "pairs", "nearly equal", "rejected longer"
MAX_REJECTED_RATIO = 3.0  # of the rejected answer's length to the chosen one's, above which a pair teaches length
_RAW_CHARS = 2000  # of a quarantined line that are kept to look at
_EXCERPT = 200  # characters of an example
_GROUP_BYTES = 2**21  # of such lines: as text they take several times the memory
_MOST = 2**31  # that a pattern can count; no line holds as many
_GROUP = 64  # lines that are proved sound together


@dataclass(frozen=True)
class Spec:
    """What to do with every line. `rules`: the recipe's, as plain values; `near`, `split`: Jaccard thresholds, or None."""

    rules: Mapping[str, Any]
    near: float | None = None
    split: float | None = None
    languages: bool = False
    every: int = 1  # one line in so many is measured for the report
    score_field: str | None = None
    edited_field: str | None = None


@dataclass(frozen=True)
class Task:
    """The lines of `path` that start in bytes [start, end); `line` is the first one's number, `bad` the unreadable ones."""

    label: str
    path: Path
    start: int
    end: int
    line: int = 1
    prefer: str | None = None
    strict: bool = False
    bad: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    stratum: str = ""


class Example(NamedTuple):
    source: str
    text: str
    detail: str = ""
    before: str = ""


@dataclass
class Tally:
    """What the rules did: counts by rule, and by rule and reason, with the first ten examples of each."""

    removed: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    removals: dict[tuple[str, str], list[Example]] = field(default_factory=dict)
    changes: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Count in what came later: first examples stay."""
        for mine, theirs in ((self.removed, other.removed), (self.changed, other.changed), (self.found, other.found)):
            mine.update(theirs)  # type: ignore[arg-type]
        for key, examples in other.removals.items():
            _first(self.removals.setdefault(key, []), examples)
        for name, examples in other.changes.items():
            _first(self.changes.setdefault(name, []), examples)

    def remove(self, rule: str, reason: str, example: Callable[[], Example]) -> None:
        """`example` is asked for only where it is one of the first."""
        self.removed[rule, reason] += 1
        examples = self.removals.setdefault((rule, reason), [])
        if len(examples) < EXAMPLES:
            examples.append(example())

    def change(self, rule: str, before: Record, after: Record) -> None:
        self.changed[rule] += 1
        examples = self.changes.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            old, new = difference(before, after)
            examples.append(Example(before.source, new, before=_HIDDEN if rule in _PRIVATE else old))


class Batch(NamedTuple):
    """What became of one task's lines: `read` = kept (`len(keys)`) + `rejected` + `quarantined`.

    `kept`: canonical lines in one piece, `lengths` (n,) their bytes, `keys` (n,) uint64 ids, `paired` (n,) whether a rejected
    answer comes along; `near` and `views` (n, bands) MinHash keys; `languages` (n,) names; `lines` counts blank ones too;
    `first_bad`: where and why.
    """

    read: int
    lines: int
    kept: bytes
    lengths: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    rejected: int
    rejected_lines: bytes
    quarantined: int
    quarantined_lines: bytes
    first_bad: tuple[str, str]
    tally: Tally
    before: Measures
    after: Measures
    near: NDArray[np.uint32] | None
    views: Mapping[str, NDArray[np.uint32]]
    languages: Sequence[str]
    paired: NDArray[np.bool_]


def sift(task: Task, spec: Spec) -> Batch:
    """Every line of a task through the rules of `spec`.

    Raises:
        DataError: the file cannot be read.
        UsageError: a custom rule failed.
    """
    with _no_collector():
        sieve = _Sieve(task, spec)
        sieve.run()
        return sieve.batch()


@contextmanager
def _no_collector() -> Iterator[None]:
    # Parsed lines are trees, which reference counts free; looking through them for cycles costs a tenth of the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Sieve:
    """Puts each line of a task where it belongs."""

    def __init__(self, task: Task, spec: Spec) -> None:
        self.task, self.spec = task, spec
        self.chain = _chain(orjson.dumps(dict(spec.rules)))
        self.read = self.lines = 0
        self.kept: list[bytes] = []  # two pieces for each line
        self.ids: list[str] = []
        self.rejected: list[bytes] = []
        self.quarantined: list[bytes] = []
        self.first_bad = ("", "")
        self.tally = Tally()
        self.before, self.after = Measures(), Measures()
        self.whole: list[str] = []
        self.user: list[str] = []
        self.assistant: list[str] = []
        self.languages: list[str] = []
        self.paired: list[int] = []
        self.needs_texts = spec.near is not None or spec.split is not None

    def run(self) -> None:
        """The short way where it is the same, line by line where it may not be."""
        task, line = self.task, self.task.line - 1
        short = rules.is_basic(self.spec.rules) and task.prefer in (None, "messages") and self.spec.score_field is None
        if short and self.spec.edited_field is None:
            line = self._run_short()
        else:
            for line, raw in enumerate(reading.lines(task.path, task.start, task.end), task.line):
                self.line(raw, line)
        self.lines = line - task.line + 1

    def _run_short(self) -> int:
        """Lines spelled just as they would be written here need not be parsed: a pattern proves them, the rest goes to `line`.

        Returns the last line's number.
        """
        lines = reading.lines(self.task.path, self.task.start, self.task.end)
        number = self.task.line
        while group := list(islice(lines, _GROUP)):
            text = _sound(group)
            if text is None:
                for place, raw in enumerate(group, number):
                    self.line(raw, place)
            else:
                self._group(group, text, number)
            number += len(group)
        return number - 1

    def _group(self, group: Sequence[bytes], text: str, number: int) -> None:
        """Sound lines, the first of this number. Written for speed: one loop, names bound once, every doubt left to `line`."""
        every, ids, kept = self.spec.every, self.ids, self.kept
        fits = _plain(self.spec.rules["min_turns"], self.spec.rules["turn"], self.spec.rules["max_chars"])
        head = b'{"id":"%b","source":' + _label(self.task.label).replace(b"%", b"%%") + b':%d",'
        escapes, aside = "\\" in text, self.needs_texts or self.spec.languages
        short = 0
        for raw, line, said in zip(group, count(number), text.split("\n"), strict=False):
            if not fits(said) or not line % every or (escapes and "\\" in said):
                self.line(raw, line)
                continue
            name = xxh3_64_hexdigest(raw)
            short += 1
            ids.append(name)
            kept.append(head % (name.encode(), line))
            kept.append(raw[1:])
            if aside:
                texts = said.split('"')[9::8]
                user, assistant = "".join(texts[::2]), "".join(texts[1::2])
                self._set_aside(user, assistant, user + assistant)
        self.read += short

    def line(self, raw: bytes, number: int) -> None:
        """One line, whatever it holds."""
        source = f"{self.task.label}:{number}"
        if number in self.task.bad:
            return self._quarantine(*self.task.bad[number], source)
        if not raw.strip():
            return None
        value = reading.parse(raw)
        record = value if isinstance(value, str) else self._record(value, source)
        if isinstance(record, str):
            return self._quarantine(record, raw[: 4 * _RAW_CHARS].decode("utf-8", "backslashreplace"), source)
        self.read += 1
        measured = number % self.spec.every == 0
        if measured:
            self.before.add(record)
        return self._judge(record, raw, measured=measured)

    def _record(self, value: dict[str, Any], source: str) -> Record | str:
        return formats.read(
            value,
            source,
            prefer=self.task.prefer,
            strict=self.task.strict,
            score_field=self.spec.score_field,
            edited_field=self.spec.edited_field,
        )

    def _judge(self, record: Record, raw: bytes, *, measured: bool) -> None:
        original = record
        for name, rule in self.chain:
            verdict = rule(record)
            if verdict is record:
                continue
            if isinstance(verdict, Rejection):
                return self._reject(name, verdict, original, raw)
            if isinstance(verdict, Changed):
                for kind, count in verdict.found.items():
                    self.tally.found[name, kind] += count
                verdict = verdict.record
            if verdict != record:
                self.tally.change(name, record, verdict)
                record = verdict
        self._keep(record, measured=measured)
        return None

    def _keep(self, record: Record, *, measured: bool) -> None:
        if measured:
            self.after.add(record, place=len(self.ids))
        name, written = record.named_json()
        self.ids.append(name)
        self.kept += (written, b"\n")
        if record.rejected is not None:
            self.paired.append(len(self.ids) - 1)
            self._review(record)
        if self.needs_texts or self.spec.languages:
            self._set_aside(dedup.view(record, "user"), dedup.view(record, "assistant"), dedup.view(record, dedup.WHOLE))

    def _review(self, record: Record) -> None:
        """Count where a pair comes from, and what makes a poor one; none is dropped for it."""
        self.tally.found[PAIRS, record.pair or "explicit"] += 1
        if pairs.nearly_equal(record):
            self.tally.found[PAIRS, NEARLY_EQUAL] += 1
        if pairs.length_ratio(record) > MAX_REJECTED_RATIO:
            self.tally.found[PAIRS, LONGER] += 1

    def _set_aside(self, user: str, assistant: str, whole: str) -> None:
        if self.spec.languages:
            self.languages.append(language(user + assistant))
        if self.needs_texts:
            self.user.append(user)
            self.assistant.append(assistant)
            self.whole.append(whole)

    def _reject(self, rule: str, why: Rejection, record: Record, raw: bytes) -> None:
        # The line goes in as it came: what is dropped must be found again to the byte.
        came = orjson.Fragment(raw.strip())
        line = {"source": record.source, "rule": rule, "reason": why.reason, "detail": why.detail, "record": came}
        self.rejected.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self.tally.remove(
            rule,
            why.reason,
            lambda: Example(record.source, _HIDDEN if rule in _PRIVATE else excerpt(record.messages), why.detail),
        )

    def _quarantine(self, reason: str, raw: str, source: str) -> None:
        self.read += 1
        if not self.quarantined:
            self.first_bad = (source, reason)
        raw = raw.rstrip("\r\n")[:_RAW_CHARS]
        self.quarantined.append(orjson.dumps({"source": source, "reason": reason, "raw": raw}) + b"\n")
        self.tally.remove(QUARANTINE, _kind_of(reason), lambda: Example(source, raw[:_EXCERPT], reason))

    def batch(self) -> Batch:
        """All of it, in few large pieces: they travel between processes."""
        near = self.spec.near
        views: dict[str, list[str]] = {}
        if self.spec.split is not None:
            both = [user + assistant for user, assistant in zip(self.user, self.assistant, strict=True)]
            views = {"dialogue": both, "user": self.user, "assistant": self.assistant}
        paired = np.zeros(len(self.ids), dtype=bool)
        paired[self.paired] = True
        return Batch(
            read=self.read,
            lines=self.lines,
            kept=b"".join(self.kept),
            lengths=np.fromiter(map(len, self.kept), np.uint32, len(self.kept)).reshape(-1, 2).sum(axis=1, dtype=np.uint32),
            keys=np.frombuffer(bytes.fromhex("".join(self.ids)), dtype=">u8").astype(np.uint64),
            rejected=len(self.rejected),
            rejected_lines=b"".join(self.rejected),
            quarantined=len(self.quarantined),
            quarantined_lines=b"".join(self.quarantined),
            first_bad=self.first_bad,
            tally=self.tally,
            before=self.before,
            after=self.after,
            near=None if near is None else dedup.band_keys(self.whole, near),
            views={name: dedup.band_keys(texts, self.spec.split or 1) for name, texts in views.items()},
            languages=self.languages,
            paired=paired,
        )


def excerpt(messages: Sequence[Message]) -> str:
    """The beginning of a dialogue, for a reader."""
    return " ⏎ ".join([message["content"][:_EXCERPT] for message in messages[:4]])[:_EXCERPT]


def difference(before: Record, after: Record) -> tuple[str, str]:
    """What a reader needs of two versions of a dialogue: the first text that differs, from shortly before it does."""
    ours = [*(message["content"] for message in before.messages), before.rejected or ""]
    theirs = [*(message["content"] for message in after.messages), after.rejected or ""]
    if len(ours) != len(theirs):
        return excerpt(before.messages), excerpt(after.messages)
    old, new = next(((a, b) for a, b in zip(ours, theirs, strict=True) if a != b), ("", ""))
    ends = min(len(old), len(new))
    same = next((place for place in range(ends) if old[place] != new[place]), ends)
    start = max(0, same - _EXCERPT // 2)
    return old[start : start + _EXCERPT], new[start : start + _EXCERPT]


def _first(examples: list[Example], more: Sequence[Example]) -> None:
    examples.extend(more[: EXAMPLES - len(examples)])


def _kind_of(reason: str) -> str:
    """A reason to count by: without numbers, and without what follows the first colon, quote or bracket, which may be data."""
    return re.sub(r"\d+", "N", re.split(r": |:$| \(| ['\"]", reason, maxsplit=1)[0])[:60]


@lru_cache(maxsize=8)
def _chain(rules_json: bytes) -> list[tuple[str, Rule]]:
    # Word lists and converters take long to build: once for a process.
    return rules.chain(orjson.loads(rules_json))


@lru_cache
def _plain(min_turns: int, turn: str, max_chars: int) -> Callable[[str], object]:
    """Whether a line without escapes passes the dialogue filter, and is spelled as orjson would: user and assistant in turn.

    Without an escape every quotation mark is JSON's own. A text that begins with white space may be nothing else: no match.
    """
    text = r'[^"\s][^"]{0,' + str(min(max_chars, _MOST) - 1) + "}+"
    exchange = r'\{"role":"user","content":"TEXT"\},\{"role":"assistant","content":"TEXT"\}'.replace("TEXT", text)
    least = min(max(1, -(-min_turns // 2) if turn == "message" else min_turns), _MOST) - 1
    return re.compile(r'\{"messages":\[' + exchange + f"(?:,{exchange}){{{least},}}+" + r"\]\}").fullmatch


def _sound(lines: Sequence[bytes]) -> str | None:
    """Lines as text, if they are UTF-8, each ends in a line feed, and no other control character stands in them."""
    block = b"".join(lines)
    if len(block) > _GROUP_BYTES:
        return None
    if lines[-1][-1:] != b"\n" or np.count_nonzero(np.frombuffer(block, dtype=np.uint8) < 32) > len(lines):
        return None
    try:
        return block.decode()
    except UnicodeDecodeError:
        return None


def _label(name: str) -> bytes:
    """A source's name within a JSON string, its end left open."""
    return orjson.dumps(name)[:-1]
