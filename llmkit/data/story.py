"""One record's way through cleaning, told line by line. Knows a dataset folder and the rules; nothing of recipes."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from llmkit.data import formats, reading
from llmkit.data.filters import Changed, Rejection, Rule
from llmkit.data.record import Record
from llmkit.data.sieve import difference, excerpt
from llmkit.errors import DataError

ENDS = {
    "train": "kept, in train",
    "valid": "kept, in valid",
    "test": "kept, in test",
    "rejected": "rejected",
    "quarantined": "quarantined",
}
_RAW_CHARS = 200  # of what cannot be read


def find(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Where the record `name` (its id, or FILE:LINE) ended, a key of `ENDS`, and its line there.

    Raises:
        DataError: it is nowhere in this dataset.
    """
    keys = [b'"%b":%b' % (key, orjson.dumps(name)) for key in (b"id", b"source")]
    for end in ENDS:
        path = folder / f"{end}.jsonl"
        if not path.is_file():
            continue
        for raw in reading.lines(path, 0, path.stat().st_size):
            # Cheap first: most lines hold neither.
            if any(key in raw for key in keys):
                value = _loaded(raw)
                if name in (value.get("id"), value.get("source")):
                    return end, value
    raise DataError(
        "no such record in this dataset", code="LK0211", where=name, next="give an id, or FILE:LINE as in a record's `source`"
    )


def _loaded(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:  # longer than lines may be, or edited by hand
        return {}
    return value if isinstance(value, dict) else {}


def raw_line(path: Path, number: int) -> bytes | None:
    """Line `number` (from 1) of a file of JSON lines, or None."""
    return next(islice(reading.lines(path, 0, path.stat().st_size), number - 1, number), None)


def tell(
    end: str, entry: Mapping[str, Any], rules: list[tuple[str, Rule]], *, raw: bytes | None, edited_field: str | None = None
) -> list[str]:
    """The story in lines. `raw` is the line as it came, where it can be had: without it a kept record's changes are unknown."""
    lines = [f"{entry.get('source')}" + (f", id {entry['id']}" if "id" in entry else "")]
    value = entry.get("record") if raw is None else reading.parse(raw)
    record = formats.read(value, "", edited_field=edited_field) if isinstance(value, dict) else None
    if isinstance(record, Record):
        steps = list(_steps(record, rules))
        lines += [f"  {line}" for line, _ in steps]
        if "messages" in entry and steps[-1][1].id != entry.get("id"):
            lines.append("  this is another record than the one kept: the source, or what reads it, is not what it was")
    elif end == "quarantined":
        lines.append(f"  read: {str(entry.get('raw', ''))[:_RAW_CHARS]}")
    else:
        lines.append("  the line as it came is not at hand; this is what it became")
        lines.append(f"  {excerpt(entry.get('messages') or [])}")
    if "reason" in entry:
        rule = f"{entry['rule']}: " if "rule" in entry else ""
        detail = f" ({entry['detail']})" if entry.get("detail") else ""
        lines.append(f"→ {ENDS[end]} by {rule}{entry['reason']}{detail}" if rule else f"→ {ENDS[end]}: {entry['reason']}")
    else:
        lines.append(f"→ {ENDS[end]}")
    return lines


def _steps(record: Record, rules: list[tuple[str, Rule]]) -> Iterator[tuple[str, Record]]:
    """What each rule did, and the record it left."""
    yield f"read: {excerpt(record.messages)}", record
    for name, rule in rules:
        verdict = rule(record)
        if isinstance(verdict, Rejection):
            yield f"{name}: rejected, {verdict.reason} {verdict.detail}".rstrip(), record
            return
        found = dict(verdict.found) if isinstance(verdict, Changed) else {}
        after = verdict.record if isinstance(verdict, Changed) else verdict
        counted = f" ({', '.join(f'{kind} {count}' for kind, count in found.items())})" if found else ""
        told = " → ".join(f"“{text}”" for text in difference(record, after))
        yield f"{name}: " + (f"changed{counted}: {told}" if after != record else f"passed{counted}"), after
        record = after
