"""What raw dialogues look like, from their first records. Knows shapes and sizes; chooses nothing."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit import origin
from llmkit.data import formats, language, personal, reading, unpack
from llmkit.data.record import Record
from llmkit.data.texts import joined
from llmkit.errors import DataError

LOOKED_AT = 2_000  # records of each file
BYTES = 32 * 2**20  # of each file: a few records may be as long as all the rest
FILES = 50  # of a folder, the first ones
# Of text per token: about what the tokenizers of the supported families take.
_CHARS_PER_TOKEN = {"zh": 1.2, "ja": 1.2, "ko": 1.2}
_OTHER_CHARS_PER_TOKEN = 3.5


@dataclass(frozen=True)
class Survey:
    """`records`: lines in all files read, readable or not; the rest is of the `looked_at` that could be read.

    `format`: most records' format; `languages`: shares by script, the largest first; `turns`: messages without the system's,
    sorted; `chars`: of each record's longest message, sorted; `tokens`: of each whole record, estimated, sorted; `paired`:
    records that bring a rejected answer; `personal`, `code`: records that hold personal data, or a fenced program.
    """

    records: int
    looked_at: int
    unreadable: int
    format: str
    languages: Mapping[str, float]
    turns: Sequence[int]
    chars: Sequence[int]
    tokens: Sequence[int]
    paired: int
    personal: int
    code: int


def survey(path: str) -> Survey:
    """Read the first records of every data file that a recipe's `data.sources` would take for `path`.

    Raises:
        DataError: nothing there, or no record that can be read; says why the first one cannot.
    """
    found = origin.source(path)
    files = origin.files_of(found.ready or found.fetch())
    with tempfile.TemporaryDirectory(prefix="llmkit-") as scratch:
        plain = [_lines(file, Path(scratch) / f"{number}.jsonl") for number, file in enumerate(files[:FILES])]
        total = sum(reading.count_lines(file, 0, file.stat().st_size) for file in plain)
        raws = [raw for file in plain for raw in islice(_objects(file), LOOKED_AT)]
    form = formats.vote(raw for raw in raws if isinstance(raw, dict))
    read = [raw if isinstance(raw, str) else formats.read(raw, path, prefer=form) for raw in raws]
    records = [one for one in read if isinstance(one, Record) and one.messages]
    if not records:
        why = next((one for one in read if isinstance(one, str)), "it is empty")
        raise DataError(f"no dialogue can be read here: {why}", code="LK0151", where=path, next="see `llmkit clean --help`")
    return _described(records, total=total, unreadable=len(read) - len(records), form=form or "")


def _lines(file: Path, scratch: Path) -> Path:
    if unpack.is_plain(file):
        return file
    unpack.to_lines(file, scratch)
    return scratch


def _objects(file: Path) -> Iterator[dict[str, Any] | str]:
    """Each line that is not blank: its JSON object, or the reason there is none."""
    for line in reading.lines(file, 0, min(file.stat().st_size, BYTES), max_line_bytes=BYTES):
        if line.strip():
            yield reading.parse(line) if len(line) <= BYTES else "a record of more than 32 MiB"


def _described(records: Sequence[Record], *, total: int, unreadable: int, form: str) -> Survey:
    spoken = Counter(language.language(joined(one)) for one in records)
    private = personal.personal(action="drop")
    talk = [[message for message in one.messages if message["role"] != "system"] for one in records]
    return Survey(
        records=total,
        looked_at=len(records),
        unreadable=unreadable,
        format=form,
        languages={name: count / len(records) for name, count in spoken.most_common()},
        turns=sorted(map(len, talk)),
        chars=sorted(max(len(message["content"]) for message in one.messages) for one in records),
        tokens=sorted(_tokens(one) for one in records),
        paired=sum(one.rejected is not None for one in records),
        personal=sum(not isinstance(private(one), Record) for one in records),
        code=sum("```" in joined(one) for one in records),
    )


def _tokens(record: Record) -> int:
    """An estimate, with what a template adds to each message."""
    text = joined(record)
    rate = _CHARS_PER_TOKEN.get(language.language(text), _OTHER_CHARS_PER_TOKEN)
    return int(len(text) / rate) + 8 * len(record.messages)
