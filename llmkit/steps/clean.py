"""clean: raw dialogues → DATASET. Reads what it is given, drops with a reason, and splits without leaks.

Every line that is not blank ends in one of three places, and they add up: kept (train, valid, test), rejected
(a dialogue, but not one to train on) or quarantined (not a dialogue that can be read).
"""

import importlib.util
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind, write_json
from llmkit.errors import DataError, FidelityError, MachineError, UsageError
from llmkit.origin import files_of

if TYPE_CHECKING:
    from llmkit.data.arrange import Arranged, TestSet
    from llmkit.data.cleaning import Outcome, Sifting
    from llmkit.data.sieve import Spec
    from llmkit.data.workers import Source

VERB = "clean"
REVISION = 2
KIND = Kind.DATASET

DEFAULT_SEED = 42
_NAMED = 5  # quarantined lines that are told one by one
_MEASURED_BYTES = 2 * 2**20  # of data for each thousand dialogues that are measured for the report, about
_ALL_MEASURED = 16 * 2**20  # bytes of data up to which every dialogue is measured
_POOLED = 64 * 2**20  # bytes of data from which more than one process is worth its start


def _fraction(value: object) -> object:
    """0.01, or the same as "1%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"{value!r} is not a percentage such as 1%") from None
    return value


Share = Annotated[float, BeforeValidator(_fraction)]


def _listed(value: object) -> object:
    """One path is as good as a list of one."""
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Split(BaseModel, frozen=True, extra="forbid"):
    """What part of the kept dialogues each side holds: families of near-duplicates are dealt, so counts come close."""

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


class Dedup(BaseModel, frozen=True, extra="forbid"):
    """Which repetitions are dropped; the first in the order of the sources stays."""

    exact: bool = Field(True, description="drop a dialogue that says the same, character by character, as one before")
    near: float | None = Field(
        None, gt=0, le=1, description="drop one at least so much like one before: Jaccard similarity of 3-character shingles"
    )


class Sensitive(BaseModel, frozen=True, extra="forbid"):
    """Words of your own lists."""

    words: Paths = Field(min_length=1, description="files of one word a line, UTF-8; # begins a comment line")
    action: Literal["drop", "mask", "count"] = Field("drop", description="drop the dialogue, mask the word, or only count it")


class Personal(BaseModel, frozen=True, extra="forbid"):
    """Personal data."""

    action: Literal["drop", "mask", "keep"] = Field(
        "mask", description="drop the dialogue, mask with a typed placeholder such as <PHONE>, or keep and count"
    )
    kinds: tuple[Literal["email", "phone", "id_card", "bank_card", "ip"], ...] = Field(
        ("email", "phone", "id_card", "bank_card", "ip"), min_length=1, description="what is looked for"
    )


class Decontaminate(BaseModel, frozen=True, extra="forbid"):
    """Evaluation sets that must not be trained on."""

    against: Paths = Field(min_length=1, description="files whose questions are kept out, in any format that is read")
    near: float = Field(0.7, gt=0, le=1, description="Jaccard similarity of 3-character shingles from which one is dropped")


class Rules(BaseModel, frozen=True, extra="forbid"):
    """What a dialogue must be to stay, and what is done to it."""

    min_turns: int = Field(3, ge=1, description="fewest turns in a dialogue, the system message not counted")
    turn: Literal["message", "exchange"] = Field(
        "message", description="what a turn is: a message, or a user's message with its answer"
    )
    max_chars: int = Field(256, ge=1, description="most characters in a message")
    min_chars: int = Field(1, ge=1, description="fewest characters in a message, white space at its ends not counted")
    tools: Literal["reject", "drop"] = Field(
        "reject", description="dialogues with tool calls: reject them, or drop the calls and results and keep the talk"
    )
    unicode: bool = Field(
        False, description="repair Unicode: full-width letters, control characters; Chinese punctuation stays"
    )
    whitespace: bool = Field(False, description="collapse runs of spaces and blank lines")
    simplify: bool = Field(False, description="Traditional → Simplified Chinese (OpenCC t2s)")
    glossary: str | None = Field(None, description="a CSV file of variant,standard: each variant becomes the standard term")
    languages: Annotated[tuple[str, ...] | None, BeforeValidator(_listed)] = Field(
        None, min_length=1, description="languages that stay, as [zh, en]"
    )
    language_by: Literal["script", "lingua"] = Field("script", description="by script, or by lingua (an extra; 96 MB)")
    max_repetition: Share | None = Field(None, ge=0, le=1, description="most repeated 10-character runs, as a share")
    max_special: Share | None = Field(None, ge=0, le=1, description="most special characters, as a share")
    urls: Literal["keep", "mask", "drop"] = Field("keep", description="links: keep them, mask them, or drop the dialogue")
    markup: Literal["keep", "strip", "drop"] = Field("keep", description="HTML: keep it, strip it, or drop the dialogue")
    refusals: Literal["keep", "drop"] = Field("keep", description='answers like "As an AI language model…"')
    sensitive: Sensitive | None = Field(None, description="words of your own lists")
    personal: Personal | None = Field(None, description="e-mail, phone, ID card, bank card and IP addresses")
    custom: Paths = Field((), description="Python files, each with judge(record); run only with --allow-code")
    dedup: Dedup = Field(Dedup(), description="repetitions")
    decontaminate: Decontaminate | None = Field(None, description="evaluation sets to keep out")
    max_bad: Share = Field(0.01, ge=0, le=1, description="share of unreadable lines from which the run stops, as 0.01 or 1%")
    to: Literal["messages", "sharegpt", "alpaca"] | None = Field(
        None, description="write the sides in this format too, in a folder of its name, for other trainers"
    )
    # Where and by how many it is done changes no byte, so neither is part of the fingerprint.
    engine: Literal["local", "ray"] = Field("local", exclude=True, description="processes here, or a Ray cluster (an extra)")
    workers: int | None = Field(None, ge=1, exclude=True, description="processes; default one for each core, for large data")


_OWN = {"dedup", "decontaminate", "max_bad", "to"}  # of Rules, what is not done line by line


class Config(Rules, frozen=True, extra="forbid"):
    split: Split = Field(Split(), description="how the dialogues are divided")
    seed: int | None = Field(None, description="draws who goes to which side; the recipe's seed where none is given")
    formats: tuple[str | None, ...] = Field((), description="each source's format, where it is not to be detected")
    score_field: str | None = Field(None, description="a rating's field in the raw records; see data.pairs.rating")
    edited_field: str | None = Field(None, description="a corrected answer's field in the raw records; see data.pairs.edited")


def rule_files(rules: Rules) -> list[str]:
    """Files that the rules name; their content is part of what is cleaned by."""
    words = rules.sensitive.words if rules.sensitive else ()
    against = rules.decontaminate.against if rules.decontaminate else ()
    return [*words, *([rules.glossary] if rules.glossary else []), *rules.custom, *against]


def check(config: Config, *, allow_code: bool) -> None:
    """What can be known before any line is read: that code is allowed, and that every list, glossary and extra is there.

    Raises:
        UsageError: the recipe names Python files, and nothing allows them.
        DataError, MachineError: a file that a rule needs cannot be used, or an extra is missing.
    """
    from llmkit.data import rules

    if config.custom and not allow_code:
        raise UsageError(
            "the recipe runs Python code of its own",
            code="LK0111",
            where=", ".join(config.custom),
            next="read it, then say --allow-code",
        )
    if config.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MachineError("engine: ray needs an extra", code="LK0907", where="clean.engine", next="pip install 'llmkit[ray]'")
    rules.chain(line_rules(config))


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Clean the SOURCE artifacts in `inputs` (roles "source.N") into `out`.

    Writes train.jsonl, valid.jsonl, test.jsonl, rejected.jsonl, quarantined.jsonl, report.json and report.html. Facts:
    `read`, `kept`, `rejected`, `quarantined`, `reasons` {reason: count}, `changed` {rule: count}, `train`, `valid`, `test`,
    `families` (of near-duplicates, among the kept), `leaks` (0: proved) and `with_rejected` (kept records that bring a
    rejected answer).

    Raises:
        DataError: a file that cannot be read or changed meanwhile, too many unreadable lines, or nothing left to train on.
        FidelityError: records went missing.
    """
    from llmkit.data.cleaning import Sifting

    unpacked = out / ".unpacked"
    sources = _sources(inputs, config, unpacked)
    spec = _spec(config, sum(source.snapshot.size for source in sources))
    second = spec.near is not None or spec.split is not None or config.decontaminate is not None
    with Sifting(out, spec, exact=config.dedup.exact, whole=second) as sifting:
        _sift(sifting, sources, spec, config)
        shutil.rmtree(unpacked, ignore_errors=True)
        _check(sifting.outcome, config)
        arranged = _arrange(sifting, config, out) if second else None
        if not second:
            _pass_on(sifting, out)
    if config.to:
        _convert(out, config.to)
    return _finish(sifting.outcome, arranged, spec, config, sources, out)


def _sources(inputs: Mapping[str, Artifact], config: Config, unpacked: Path) -> "list[Source]":
    """Every data file, in order, as JSON lines. A label is the file's name, or its path where two files share the name."""
    from llmkit.data import unpack

    files = _files(inputs)
    shared = Counter(path.name for path, _ in files)
    roots = [inputs[role].path for role in _roles(inputs)]
    found = []
    for number, (path, source) in enumerate(files):
        label = path.name if shared[path.name] == 1 else str(path)
        form = config.formats[source] if source < len(config.formats) else None
        root = roots[source]
        inner = path.name if path == root else path.relative_to(root).as_posix()
        stratum = inner if source == 0 else f"{inner} (source {source + 1})"
        if unpack.is_plain(path):
            found.append(_source(label, path, form)._replace(stratum=stratum))
            continue
        unpacked.mkdir(exist_ok=True)
        progress.note(f"unpacking {label}")
        lines = unpacked / f"{number}.jsonl"
        bad = unpack.to_lines(path, lines).bad
        found.append(_source(label, lines, form)._replace(bad=bad, stratum=stratum))
    return found


def _files(inputs: Mapping[str, Artifact]) -> list[tuple[Path, int]]:
    """(file, number of its source), in order."""
    found: list[tuple[Path, int]] = []
    for number, role in enumerate(
        sorted((role for role in inputs if role.startswith("source.")), key=lambda role: int(role[7:]))
    ):
        paths = files_of(inputs[role])
        if not paths:
            raise DataError(
                "no dialogues here",
                code="LK0201",
                where=str(inputs[role].path),
                next="put JSON lines, JSON, CSV, Parquet or Arrow files there, also gzip or zstd",
            )
        found += [(path, number) for path in paths]
    if not found:
        raise DataError("nothing to clean", code="LK0108", next="name a source: `data.sources` in the recipe, or --input")
    return found


def _roles(inputs: Mapping[str, Artifact]) -> list[str]:
    return sorted((role for role in inputs if role.startswith("source.")), key=lambda role: (len(role), role))


def _source(label: str, path: Path, form: str | None) -> "Source":
    """One file with its format: the one given, or what most of its first thousand records are."""
    from itertools import islice

    from llmkit.data import formats, reading
    from llmkit.data.workers import Source

    before = reading.snapshot(path)
    if form is None:
        head = (reading.parse(line) for line in islice(reading.lines(path, 0, before.size), formats.VOTERS))
        prefer = formats.vote(value for value in head if not isinstance(value, str))
    else:
        prefer = form
    return Source(label, path, before, prefer, form is not None)


def _spec(config: Config, total: int) -> "Spec":
    from llmkit.data.sieve import Spec

    whole = config.split.train < 1
    every = 1 if total <= _ALL_MEASURED else 2 ** (total // _MEASURED_BYTES).bit_length()
    return Spec(
        rules=line_rules(config),
        near=config.dedup.near,
        split=config.split.near if whole else None,
        languages=whole,
        every=every,
        score_field=config.score_field,
        edited_field=config.edited_field,
    )


def line_rules(config: Config) -> dict[str, Any]:
    """What is done line by line, as plain values, with whole paths: a worker may stand in another folder."""
    values = config.model_dump(mode="json")
    rules = {key: value for key, value in values.items() if key in Rules.model_fields and key not in _OWN}
    rules["custom"] = _whole_paths(config.custom)
    rules["glossary"] = next(iter(_whole_paths([config.glossary] if config.glossary else [])), None)
    if config.sensitive:
        rules["sensitive"]["words"] = _whole_paths(config.sensitive.words)
    return rules


def _whole_paths(paths: Sequence[str]) -> list[str]:
    return [str(Path(path).expanduser().absolute()) for path in paths]


def _sift(sifting: "Sifting", sources: "Sequence[Source]", spec: "Spec", config: Config) -> None:
    """The first pass over every file; the bar counts bytes."""
    from llmkit.data import reading, workers

    total = sum(source.snapshot.size for source in sources)
    processes = config.workers or (os.cpu_count() or 1 if total >= _POOLED or config.engine == "ray" else 1)
    with progress.track(VERB, total=total) as bar:
        began = time.monotonic()
        for task, batch in workers.batches(sources, spec, engine=config.engine, workers=processes):
            sifting.take((task, batch))
            read = sifting.outcome.read
            rate = read / max(1e-3, time.monotonic() - began)
            bar.advance(task.end - task.start, f"{read:,} read, {sifting.count:,} left, {rate:,.0f} records/s")
    for source in sources:
        reading.check_unchanged(source.path, source.snapshot)


def _pass_on(sifting: "Sifting", out: Path) -> None:
    """No second pass is asked for: what was sifted is train.jsonl as it is."""
    sifting.path.replace(out / "train.jsonl")
    for name in ("valid", "test"):
        (out / f"{name}.jsonl").touch()
    sifting.outcome.sides["train"] = sifting.count


def _arrange(sifting: "Sifting", config: Config, out: Path) -> "Arranged":
    """The second pass: near-duplicates, test sets, the split."""
    from llmkit.data.arrange import Arranger
    from llmkit.data.split import Shares

    seed = DEFAULT_SEED if config.seed is None else config.seed
    with sifting.store() as store:
        arranger = Arranger(sifting, store)
        if config.dedup.near is not None:
            progress.note(f"looking for near-duplicates among {len(store):,} dialogues")
            arranger.drop_near(config.dedup.near)
        if config.decontaminate:
            for path in config.decontaminate.against:
                arranger.keep_out(_test_set(Path(path).expanduser(), out), config.decontaminate.near)
        if config.split.train < 1:
            progress.note("dealing families of near-duplicates to train, valid and test")
            shares = Shares(config.split.train, config.split.valid, config.split.test)
            arranger.deal(shares, near=config.split.near, seed=seed)
        arranger.write(out, seed)
    sifting.path.unlink()
    _warn_of_empty_sides(sifting.outcome, arranger.result, config.split)
    return arranger.result


def _test_set(path: Path, out: Path) -> "TestSet":
    """What an evaluation set asks, in any format that is read; what cannot be read is counted aloud."""
    from llmkit.data import formats, reading, unpack
    from llmkit.data.arrange import TestSet

    lines = path
    if not unpack.is_plain(path):
        lines = out / ".test-set.jsonl"
        unpack.to_lines(path, lines)
    texts, numbers, unread = [], [], 0
    for number, raw in enumerate(reading.lines(lines, 0, lines.stat().st_size), 1):
        value = reading.parse(raw)
        text = None if isinstance(value, str) else formats.prompt_text(value)
        if text:
            texts.append(text)
            numbers.append(number)
        else:
            unread += bool(raw.strip())
    if lines != path:
        lines.unlink()
    if not texts:
        raise DataError("no question can be read here", code="LK0216", where=str(path), next="mend clean.decontaminate.against")
    if unread:
        progress.note(f"warning: {unread} lines of {path} hold no question that can be read; nothing is kept out for them")
    return TestSet(path.name, texts, numbers)


def _check(outcome: "Outcome", config: Config) -> None:
    """Stop where going on would hide a mistake."""
    source, reason = outcome.first_bad
    # The slack is for rounding: 29 of 100 lines are not more than 29 %.
    if outcome.quarantined > config.max_bad * outcome.read + 1e-6:
        raise DataError(
            f"{outcome.quarantined} of {outcome.read} lines cannot be read, more than max_bad allows ({config.max_bad:.3g}); "
            f"the first: {reason}",
            code="LK0205",
            where=source,
            next="mend the file, or raise clean.max_bad to set such lines aside",
        )
    _tell_of_unreadable(outcome)
    if outcome.read == outcome.rejected + outcome.quarantined:
        reasons = _reasons(outcome)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the files are empty"
        raise DataError(
            f"empty dataset after cleaning: {outcome.read} read, 0 kept ({counts})",
            code="LK0206",
            next=_remedy(reasons, config),
        )


def _tell_of_unreadable(outcome: "Outcome") -> None:
    from llmkit.data.sieve import QUARANTINE

    examples = [one for (rule, _), found in outcome.tally.removals.items() if rule == QUARANTINE for one in found]
    for one in examples[:_NAMED]:
        progress.note(f"warning: {one.source}: {one.detail}; set aside in quarantined.jsonl")
    if outcome.quarantined > _NAMED:
        progress.note(f"and {outcome.quarantined - _NAMED} more unreadable lines, all in quarantined.jsonl")


def _remedy(reasons: Mapping[str, int], config: Config) -> str:
    remedies = {
        "too_few_turns": f"lower clean.min_turns (now {config.min_turns})",
        "message_too_long": f"raise clean.max_chars (now {config.max_chars})",
        "bad_roles": "let user and assistant alternate, the assistant last",
        "empty_message": "fill or drop the empty messages",
        "language": f"name more in clean.languages (now {', '.join(config.languages or ())})",
        "tool_calls": "set clean.tools: drop to keep the talk without the calls",
    }
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    return remedies.get(most, "loosen the rule that rejects most" if reasons else "name a source that holds dialogues")


def _reasons(outcome: "Outcome") -> dict[str, int]:
    """Why records were rejected, the most frequent first."""
    from llmkit.data.sieve import QUARANTINE

    counts: Counter[str] = Counter()
    for (rule, reason), count in outcome.tally.removed.items():
        if rule != QUARANTINE:
            counts[reason] += count
    return dict(counts.most_common())


def _warn_of_empty_sides(outcome: "Outcome", arranged: "Arranged", split: Split) -> None:
    if not outcome.sides["train"]:
        raise DataError(
            "no dialogue is left to train on after the split", code="LK0206", next="add dialogues or lower split.test"
        )
    for name in ("valid", "test"):
        if getattr(split, name) > 0 and not outcome.sides[name]:
            progress.note(
                f"warning: {name} is empty; {outcome.kept} dialogues fall in {arranged.families} families of near-duplicates, "
                "too few or too large to spare one"
            )


def _convert(out: Path, name: str) -> None:
    """The sides once more, in the format of other trainers."""
    import orjson

    from llmkit.data.formats_out import TO
    from llmkit.data.record import read_records

    (out / name).mkdir()
    sides = [f"{side}.jsonl" for side in ("train", "valid", "test")]
    # A 1 among stars is no thumb up.
    thumbs = all(record.score in (None, 0, 1) for side in sides for record in read_records(out / side))
    for side in sides:
        with (out / name / side).open("wb") as stream:
            stream.writelines(orjson.dumps(TO[name](record, thumbs)) + b"\n" for record in read_records(out / side))


def _finish(
    outcome: "Outcome", arranged: "Arranged | None", spec: "Spec", config: Config, sources: "Sequence[Source]", out: Path
) -> Facts:
    """The report, and the facts in short; every record must be accounted for."""
    from llmkit.data import account
    from llmkit.report import cleaning

    if outcome.read != outcome.kept + outcome.rejected + outcome.quarantined:
        counts = f"{outcome.kept} kept, {outcome.rejected} rejected, {outcome.quarantined} quarantined"
        raise FidelityError(f"records went missing: {outcome.read} read, but {counts}", code="LK0215")
    report = account.report(
        outcome, arranged, spec, config.model_dump(mode="json"), {one.label: one.snapshot.size for one in sources}
    )
    for warning in report["warnings"]:
        progress.note(f"warning: {warning}")
    write_json(out / "report.json", report)
    (out / "report.html").write_text(cleaning.render(report), "utf-8")
    facts: Facts = {
        "read": outcome.read,
        "kept": outcome.kept,
        "rejected": outcome.rejected,
        "quarantined": outcome.quarantined,
        "reasons": _reasons(outcome),
        "changed": dict(outcome.tally.changed),
        **outcome.sides,
        "with_rejected": outcome.with_rejected,
    }
    if arranged is not None:
        facts |= {"families": arranged.families, "leaks": 0}
    return facts
