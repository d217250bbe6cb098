"""Two JSONL files of `{"id", "text"}` to pairs ready for scoring. Knows the file format; nothing of scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from llmkit.errors import DataError

_SHOWN = 3  # ids named in an error; the rest is a count
_FORMAT = 'each line is one JSON object: {"id": "…", "text": "…"}'


class Pair(NamedTuple):
    """One sample: its id, what the model said and what it should have said."""

    id: str
    hypothesis: str
    reference: str


def read_pairs(predictions: Path, references: Path) -> list[Pair]:
    """Pair the two files' lines by id, in the order of `references`.

    Ids are strings or whole numbers (7 and "7" are one id). Blank lines are skipped; an empty prediction is kept and
    scores 0.

    Raises:
        DataError: a file that cannot be read, a line that is no such object, an id twice or in one file only, an empty
            reference, or no lines at all.
    """
    expected = _read(references, allow_empty=False)
    given = _read(predictions, allow_empty=True)
    _check_same_ids(given, expected, predictions, references)
    return [Pair(id, given[id], reference) for id, reference in expected.items()]


def _read(path: Path, *, allow_empty: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    first_line: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        id, text = _parse(line, where)
        if id in texts:
            raise DataError(
                f"the id {id!r} stands twice; first on line {first_line[id]}",
                code="LK0709",
                where=where,
                next="make ids unique",
            )
        if not allow_empty and not text.strip():
            raise DataError(
                f"the reference {id!r} is empty", code="LK0709", where=where, next="remove it from both files, or fill it in"
            )
        texts[id], first_line[id] = text, number
    if not texts:
        raise DataError("the file holds no lines", code="LK0709", where=str(path), next=_FORMAT)
    return texts


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # some editors write a BOM
                if content.strip():
                    yield number, content
    except FileNotFoundError as error:
        raise DataError("no such file", code="LK0113", where=str(path)) from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", code="LK0113", where=str(path)) from error


def _parse(line: bytes, where: str) -> tuple[str, str]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg}", code="LK0709", where=where, next=_FORMAT) from error
    if not isinstance(record, dict):
        raise DataError("not a JSON object", code="LK0709", where=where, next=_FORMAT)
    for key in ("id", "text"):
        if key not in record:
            raise DataError(f'the key "{key}" is missing', code="LK0709", where=where, next=_FORMAT)
    id, text = record["id"], record["text"]
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise DataError('"id" is neither a string nor a whole number', code="LK0709", where=where, next=_FORMAT)
    if not isinstance(text, str):
        raise DataError('"text" is not a string', code="LK0709", where=where, next=_FORMAT)
    return str(id), text


def _check_same_ids(given: dict[str, str], expected: dict[str, str], predictions: Path, references: Path) -> None:
    no_prediction = [id for id in expected if id not in given]
    no_reference = [id for id in given if id not in expected]
    problems = []
    if no_prediction:
        problems.append(f"{_some(no_prediction, len(expected))} in the references only")
    if no_reference:
        problems.append(f"{_some(no_reference, len(given))} in the predictions only")
    if problems:
        raise DataError(
            "the two files do not hold the same ids: " + "; ".join(problems),
            code="LK0709",
            where=f"{predictions} and {references}",
            next="predict every reference once, under its id",
        )


def _some(ids: list[str], total: int) -> str:
    shown = ", ".join(repr(id) for id in ids[:_SHOWN])
    return f"{len(ids)} of {total} ids ({shown}{', …' if len(ids) > _SHOWN else ''})"
