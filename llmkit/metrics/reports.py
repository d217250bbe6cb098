"""Reports of `llmkit eval` read back from disk, and whether two of them may be compared. Knows both files' formats; no score.

A report is a folder with report.json and, beside it, samples.jsonl: one line a sample, with the answers of every model.
The files may come from anyone: they are bounded, every part is checked, and what is absent is told.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from llmkit.errors import DataError

REPORT, SAMPLES = "report.json", "samples.jsonl"
_MOST_REPORT_BYTES = 64 << 20
_MOST_SAMPLE_BYTES = 512 << 20
_MOST_SAMPLES = 1_000_000
_SHOWN = 3  # ids named in an error; the rest is a count
# What decides an answer besides the model and the prompt. The batch size does not belong here.
_DECODING = ("decoding", "max_new_tokens", "temperature", "top_p", "beams", "seed")

Key = tuple[str, int]


@dataclass(frozen=True)
class Sample:
    """One prompt, as (role, content) pairs; what should be answered; and what each model answered."""

    id: str
    prompt: tuple[tuple[str, str], ...]
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Report:
    """One evaluation. `rows`: the report's `models`; `reference`: the row that variants were measured against, if any."""

    path: Path
    rows: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    signatures: Mapping[str, Any]
    reference: str
    samples: tuple[Sample, ...]

    @cached_property
    def by_key(self) -> dict[Key, Sample]:
        """Samples by id and how many of this id came before: a test set may hold a dialogue twice."""
        seen: dict[str, int] = {}
        found = {}
        for sample in self.samples:
            turn = seen[sample.id] = seen.get(sample.id, -1) + 1
            found[sample.id, turn] = sample
        return found


@dataclass(frozen=True)
class Side:
    """One model of one report."""

    report: Report
    row: str

    @property
    def label(self) -> str:
        return f"{self.report.path}:{self.row}"

    @property
    def numbers(self) -> Mapping[str, Any]:
        return self.report.rows[self.row]


def locate(name: str) -> tuple[Path, str | None]:
    """`FOLDER`, `FOLDER/report.json`, `FOLDER:ROW` → the folder and the row's name, if one is given.

    Raises:
        DataError: no report there.
    """
    folder, colon, row = name.rpartition(":")
    for path, chosen in ((name, None), (folder, row)) if colon and folder and row else ((name, None),):
        whole = Path(path)
        whole = whole.parent if whole.name == REPORT else whole
        if _is_file(whole / REPORT):
            return whole, chosen
    raise DataError(
        f"no {REPORT} there", code="LK0708", where=name, next="name a folder that `llmkit eval` wrote, or FOLDER:ROW"
    )


def read(folder: Path) -> Report:
    """The report in `folder`.

    Raises:
        DataError: a file is missing, too large or not of this form.
    """
    path = folder / REPORT
    raw = _parse(_content(path), str(path))
    rows = raw.get("models")
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise DataError('it has no "models"', code="LK0708", where=str(path), next="evaluate again with this version of llmkit")
    samples = tuple(_read_samples(folder / SAMPLES))
    answered = set.intersection(*(set(sample.answers) for sample in samples))
    if missing := [name for name in rows if name not in answered]:
        raise DataError(
            f"{missing[0]!r} has not answered every sample of {SAMPLES}",
            code="LK0708",
            where=str(folder),
            next="the two do not belong together",
        )
    reference = raw.get("reference")
    return Report(
        path=folder,
        rows=rows,
        settings=_mapping(raw.get("settings")),
        signatures=_mapping(raw.get("signatures")),
        reference=reference if isinstance(reference, str) and reference in rows else "",
        samples=samples,
    )


def obstacles(a: Report, b: Report) -> list[str]:
    """Why the answers of the two reports must not be compared, a line each; empty: they may."""
    here, there = a.by_key, b.by_key
    shared = [key for key in here if key in there]
    found = []
    for name, alone in (
        ("the first", [key for key in here if key not in there]),
        ("the second", [key for key in there if key not in here]),
    ):
        if alone:
            found.append(f"{len(alone)} samples are in {name} only: {_some(alone)}")
    for what in ("prompt", "reference"):
        if changed := [key for key in shared if getattr(here[key], what) != getattr(there[key], what)]:
            found.append(f"the {what}s of {len(changed)} samples differ: {_some(changed)}")
    names = sorted({*a.signatures} & {*b.signatures})
    return [
        *found,
        *_differences("signature", a.signatures, b.signatures, names),
        *_differences("setting", a.settings, b.settings, _DECODING),
    ]


def incomparable_numbers(a: Report, b: Report) -> dict[str, str]:
    """Numbers that mean something else in each of the two reports → why."""
    found = {}
    one, two = a.settings.get("tokenizer"), b.settings.get("tokenizer")
    if one is None or one != two:
        found["perplexity"] = "perplexities compare only under one tokenizer, and the reports do not say that they share one"
    first, second = (_reference_fingerprint(report) for report in (a, b))
    if first is None or first != second:
        why = "it is measured against the reference model, and the reports do not say that they share one"
        found |= {"kl": why, "retention": why}
    return found


def _reference_fingerprint(report: Report) -> object:
    return report.rows.get(report.reference, {}).get("fingerprint")


def _differences(kind: str, a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        # Sampling alone has a seed that matters; what an older report does not tell is not held against it.
        if name in a and name in b and a[name] != b[name] and (name != "seed" or a.get("decoding") == "sampling"):
            yield f"the {kind} {name} differs: {_short(a[name])} and {_short(b[name])}"


def _read_samples(path: Path) -> Iterator[Sample]:
    if not _is_file(path):
        raise DataError(f"there is no {SAMPLES} beside {REPORT}", code="LK0708", where=str(path.parent), next="evaluate again")
    count = 0
    try:
        if path.stat().st_size > _MOST_SAMPLE_BYTES:
            raise DataError(f"{SAMPLES} is larger than {_MOST_SAMPLE_BYTES >> 20} MB", code="LK0708", where=str(path))
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _sample(_parse(line, f"{path}:{number}"), f"{path}:{number}")
                    count += 1
                if number > _MOST_SAMPLES:
                    raise DataError(f"{SAMPLES} has more than {_MOST_SAMPLES:,} lines", code="LK0708", where=str(path))
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", code="LK0708", where=str(path)) from error
    if not count:
        raise DataError("there are no samples", code="LK0708", where=str(path))


def _sample(raw: Mapping[str, Any], where: str) -> Sample:
    id, prompt, reference, answers = (raw.get(key) for key in ("id", "prompt", "reference", "answers"))
    if not isinstance(id, str) or not isinstance(reference, str):
        raise DataError('"id" and "reference" have to be strings', code="LK0708", where=where)
    if not isinstance(answers, dict) or not all(isinstance(text, str) for text in answers.values()):
        raise DataError('"answers" has to hold a text for each model', code="LK0708", where=where)
    said = []
    for message in prompt if isinstance(prompt, list) else []:
        pair = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not all(isinstance(part, str) for part in pair):
            raise DataError('"prompt" has to be a list of {"role", "content"}', code="LK0708", where=where)
        said.append(pair)
    return Sample(id, tuple(said), reference, answers)  # type: ignore[arg-type]


def _content(path: Path) -> bytes:
    if not _is_file(path):
        raise DataError(
            f"there is no {REPORT}", code="LK0708", where=str(path.parent), next="name a folder that `llmkit eval` wrote"
        )
    try:
        if path.stat().st_size > _MOST_REPORT_BYTES:
            raise DataError(f"{REPORT} is larger than {_MOST_REPORT_BYTES >> 20} MB", code="LK0708", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", code="LK0708", where=str(path)) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()  # not a pipe, which would be waited on
    except (OSError, ValueError):  # a name that no file can have
        return False


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        raw = _decode(content)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", code="LK0708", where=where, next="evaluate again") from error
    if not isinstance(raw, dict):
        raise DataError("not a JSON object", code="LK0708", where=where)
    return raw


def _decode(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # Half of a surrogate pair, which a model can say, is JSON for Python alone.
        return json.loads(content)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _some(keys: Sequence[Key]) -> str:
    shown = ", ".join(repr(_short(id)) for id, _ in keys[:_SHOWN])
    return f"{shown}{', …' if len(keys) > _SHOWN else ''}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"
