"""clean: raw dialogues → DATASET. Reads what it is given, drops with a reason, and splits without leaks.

Every line that is not blank ends in one of three places, and they add up: kept (train, valid, test), rejected
(a dialogue, but not one to train on) or quarantined (not a dialogue that can be read).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import DataError, FidelityError
from llmkit.origin import DATA_SUFFIXES, files_of

if TYPE_CHECKING:
    from llmkit.data.filters import Filter
    from llmkit.data.reading import Entry
    from llmkit.data.record import Record
    from llmkit.data.split import Sides

VERB = "clean"
REVISION = 1
KIND = Kind.DATASET

DEFAULT_SEED = 42
_RAW_CHARS = 2000  # of a quarantined line that are kept to look at
_NAMED = 5  # quarantined lines that are told one by one
_BAR_BYTES = 2**20  # between two moves of the progress bar


def _fraction(value: object) -> object:
    """0.01, or the same as "1%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"{value!r} is not a percentage such as 1%") from None
    return value


class Split(BaseModel, frozen=True, extra="forbid"):
    """What part of the kept dialogues each side holds."""

    train: float = Field(0.8, gt=0, le=1, description="share of the dialogues to train on")
    valid: float = Field(0.1, ge=0, lt=1, description="share to watch the loss on while training")
    test: float = Field(0.1, ge=0, lt=1, description="share to evaluate on; no near-duplicate of it is trained on")
    near: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of 3-character shingles from which two stay together")

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, valid and test must sum to 1, not {total:g}")
        return self


class Rules(BaseModel, frozen=True, extra="forbid"):
    """What a dialogue must be to stay."""

    min_turns: int = Field(3, ge=1, description="fewest messages in a dialogue, the system message not counted")
    max_chars: int = Field(256, ge=1, description="most characters in a message")
    max_bad: Annotated[float, BeforeValidator(_fraction)] = Field(
        0.01, ge=0, le=1, description="share of unreadable lines from which the run stops, as 0.01 or 1%"
    )


class Config(Rules, frozen=True, extra="forbid"):
    split: Split = Field(Split(), description="how the dialogues are divided")
    seed: int | None = Field(None, description="draws who goes to which side; the recipe's seed where none is given")


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Clean the SOURCE artifacts in `inputs` into `out`.

    Writes train.jsonl, valid.jsonl, test.jsonl, rejected.jsonl and quarantined.jsonl. Facts: `read`, `kept`,
    `rejected`, `quarantined`, `reasons` {reason: count}, `train`, `valid`, `test`, `families` (of near-duplicates,
    among the kept), `leaks` (0: proved) and `with_rejected` (kept records that bring a rejected answer).

    Raises:
        DataError: a file that cannot be read, too many unreadable lines, or nothing left to train on.
        FidelityError: the split leaks.
    """
    from llmkit.data.filters import dialogue_filter
    from llmkit.data.record import write_records
    from llmkit.data.split import Shares, split

    files = _files(inputs)
    judge = dialogue_filter(min_turns=config.min_turns, max_chars=config.max_chars)
    with (out / "rejected.jsonl").open("wb") as rejected, (out / "quarantined.jsonl").open("wb") as quarantined:
        sorter = _Sorter(judge, rejected, quarantined)
        _read(files, sorter)
    _check(sorter, config)
    shares = Shares(config.split.train, config.split.valid, config.split.test)
    progress.note(f"looking for near-duplicates among {len(sorter.kept)} dialogues")
    seed = DEFAULT_SEED if config.seed is None else config.seed
    sides = split(sorter.kept, shares=shares, near=config.split.near, seed=seed)
    for name in ("train", "valid", "test"):
        write_records(out / f"{name}.jsonl", getattr(sides, name))
    _warn_of_empty_sides(sides, shares._asdict())
    return _facts(sorter, sides)


class _Sorter:
    """Puts each line where it belongs and counts; what is kept stays in memory for the split."""

    def __init__(self, judge: "Filter", rejected: BinaryIO, quarantined: BinaryIO) -> None:
        from llmkit.data import dedup, filters, formats

        self.kept: list[Record] = []
        self.read = self.rejected = self.quarantined = 0
        self.reasons: Counter[str] = Counter()
        self.first_bad = ("", "")
        self._seen: dict[bytes, str] = {}
        self._judge, self._rejected, self._quarantined = judge, rejected, quarantined
        self._interpret, self._exact_key, self._rejection = formats.read, dedup.exact_key, filters.Rejection

    def add(self, entry: "Entry", source: str) -> None:
        self.read += 1
        if isinstance(entry.value, str):
            return self._quarantine(entry, source, entry.value)
        record = self._interpret(entry.value, source)
        if isinstance(record, str):
            return self._quarantine(entry, source, record)
        verdict = self._judge(record)
        if isinstance(verdict, self._rejection):
            return self._reject(entry, source, verdict.reason, verdict.detail)
        first = self._seen.setdefault(self._exact_key(verdict), source)
        if first is not source:
            return self._reject(entry, source, "duplicate", f"says the same as {first}")
        self.kept.append(verdict)
        return None

    def _reject(self, entry: "Entry", source: str, reason: str, detail: str) -> None:
        import orjson

        self.rejected += 1
        self.reasons[reason] += 1
        # The line goes in as it came: what is dropped must be found again to the byte.
        original = orjson.Fragment(entry.raw.strip())
        line = {"source": source, "reason": reason, "detail": detail, "record": original}
        self._rejected.write(orjson.dumps(line) + b"\n")

    def _quarantine(self, entry: "Entry", source: str, reason: str) -> None:
        import orjson

        self.quarantined += 1
        if self.quarantined == 1:
            self.first_bad = (source, reason)
        if self.quarantined <= _NAMED:
            progress.note(f"warning: {source}: {reason}; set aside in quarantined.jsonl")
        raw = entry.raw[: 4 * _RAW_CHARS].decode("utf-8", "backslashreplace").rstrip("\r\n")[:_RAW_CHARS]
        self._quarantined.write(orjson.dumps({"source": source, "reason": reason, "raw": raw}) + b"\n")


def _files(inputs: Mapping[str, Artifact]) -> dict[str, Path]:
    """Label → file, in order. A label is the file's name, or its path where two files share the name."""
    paths: list[Path] = []
    for role in sorted(inputs, key=lambda role: (len(role), role)):
        artifact = inputs[role]
        found = files_of(artifact)
        if not found:
            endings = ", ".join(sorted(DATA_SUFFIXES))
            raise DataError("no dialogues here", where=str(artifact.path), next=f"put files that end in {endings} there")
        paths += found
    if not paths:
        raise DataError("nothing to clean", next="name a source: `data.sources` in the recipe, or --input")
    shared = Counter(path.name for path in paths)
    return {(path.name if shared[path.name] == 1 else str(path)): path for path in paths}


def _read(files: Mapping[str, Path], sorter: _Sorter) -> None:
    """Every line of every file through `sorter`; the bar counts bytes."""
    from llmkit.data.reading import entries

    total = sum(path.stat().st_size for path in files.values() if path.is_file())
    with progress.track(VERB, total=total) as bar:
        for label, path in files.items():
            pending = 0
            for entry in entries(path):
                sorter.add(entry, f"{label}:{entry.line}")
                pending += len(entry.raw)
                if pending >= _BAR_BYTES:
                    bar.advance(pending, f"{sorter.read} read, {len(sorter.kept)} kept")
                    pending = 0
            bar.advance(pending, f"{sorter.read} read, {len(sorter.kept)} kept")
    if sorter.quarantined > _NAMED:
        progress.note(f"and {sorter.quarantined - _NAMED} more unreadable lines, all in quarantined.jsonl")


def _check(sorter: _Sorter, config: Config) -> None:
    """Stop where going on would hide a mistake."""
    source, reason = sorter.first_bad
    # The slack is for rounding: 29 of 100 lines are not more than 29 %.
    if sorter.quarantined > config.max_bad * sorter.read + 1e-6:
        raise DataError(
            f"{sorter.quarantined} of {sorter.read} lines cannot be read, more than max_bad allows ({config.max_bad:.3g}); "
            f"the first: {reason}",
            where=source,
            next="mend the file, or raise clean.max_bad to set such lines aside",
        )
    if not sorter.kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorter.reasons.most_common()) or "the files are empty"
        raise DataError(
            f"empty dataset after cleaning: {sorter.read} read, 0 kept ({counts})", next=_remedy(sorter.reasons, config)
        )


def _remedy(reasons: Mapping[str, int], config: Config) -> str:
    remedies = {
        "too_few_turns": f"lower clean.min_turns (now {config.min_turns})",
        "message_too_long": f"raise clean.max_chars (now {config.max_chars})",
        "bad_roles": "let user and assistant alternate, the assistant last",
        "empty_message": "fill or drop the empty messages",
    }
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    return remedies.get(most, "name a source that holds dialogues")


def _warn_of_empty_sides(sides: "Sides", shares: Mapping[str, float]) -> None:
    if not sides.train:
        raise DataError("no dialogue is left to train on after the split", next="add dialogues or lower split.test")
    for name in ("valid", "test"):
        if shares[name] > 0 and not getattr(sides, name):
            progress.note(
                f"warning: {name} is empty; {len(sides.train)} dialogues fall in {sides.families} families of near-duplicates, "
                "too few or too large to spare one"
            )


def _facts(sorter: _Sorter, sides: "Sides") -> Facts:
    kept = len(sides.train) + len(sides.valid) + len(sides.test)
    if sorter.read != kept + sorter.rejected + sorter.quarantined:
        counts = f"{kept} kept, {sorter.rejected} rejected, {sorter.quarantined} quarantined"
        raise FidelityError(f"records went missing: {sorter.read} read, but {counts}")
    return {
        "read": sorter.read,
        "kept": kept,
        "rejected": sorter.rejected,
        "quarantined": sorter.quarantined,
        "reasons": dict(sorter.reasons.most_common()),
        "train": len(sides.train),
        "valid": len(sides.valid),
        "test": len(sides.test),
        "families": sides.families,
        "leaks": 0,
        "with_rejected": sum(record.rejected is not None for record in sorter.kept),
    }
