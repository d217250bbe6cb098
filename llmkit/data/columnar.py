"""Rows of Parquet and Arrow files, and of folders that `datasets` saved, as JSON lines. Knows pyarrow; nothing of records.

Nothing is unpickled, and no code of a data set is run. Memory is bounded by a row group or a record batch.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from llmkit.data.reading import RAW_BYTES, Bad
from llmkit.errors import DataError

DICT_FILE = "dataset_dict.json"
STATE_FILE = "state.json"
INFO_FILE = "dataset_info.json"
_ROWS = 256  # that are Python objects at a time


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a dataset, or a dict of datasets, in this folder."""
    return (folder / DICT_FILE).is_file() or ((folder / INFO_FILE).is_file() and (folder / STATE_FILE).is_file())


def parquet_rows(path: Path) -> Iterator[bytes | Bad]:
    """Each row as JSON, or why it has none. NaN becomes null, a date its ISO 8601 text, an exact number its digits.

    Raises:
        DataError: not a whole Parquet file.
    """
    return _rows(_parquet_batches(path))


def arrow_rows(path: Path) -> Iterator[bytes | Bad]:
    """The same for an Arrow IPC file or stream; `datasets` writes streams.

    Raises:
        DataError: not a whole Arrow file, or one whose parts contradict each other.
    """
    return _rows(_arrow_batches(path))


def saved_rows(folder: Path) -> Iterator[bytes | Bad]:
    """The same for a folder that `is_saved`: every split, file by file in the order of its state.

    Raises:
        DataError: a file of it is missing or broken.
    """
    splits = _listed(folder / DICT_FILE, "splits") if (folder / DICT_FILE).is_file() else [""]
    for split in splits:
        part = folder / _name(split, folder / DICT_FILE)
        for entry in _listed(part / STATE_FILE, "_data_files"):
            name = entry.get("filename") if isinstance(entry, dict) else None
            yield from arrow_rows(part / _name(name, part / STATE_FILE))


def _rows(batches: Iterator[Any]) -> Iterator[bytes | Bad]:
    for batch in batches:
        for row in _objects(batch):
            if isinstance(row, Bad):
                yield row
                continue
            try:
                line = orjson.dumps(row, default=_plain)
            except TypeError as error:  # what orjson raises
                yield Bad.of(f"no JSON: {error.__cause__ or error}", _excerpt(row))
            else:
                yield line


def _objects(batch: Any) -> Iterator[dict[str, Any] | Bad]:
    """The rows of a batch; for one that has no Python value, why."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield Bad.of(f"not UTF-8: {error}" if isinstance(error, UnicodeError) else f"no JSON: {error}", b"")


def _plain(value: object) -> object:
    """What orjson does not know."""
    if isinstance(value, bytes):
        raise TypeError("holds bytes that are no text")
    iso = getattr(value, "isoformat", None)
    return iso() if iso else str(value)


def _excerpt(row: dict[str, Any]) -> bytes:
    cut = {key: value[:200] if isinstance(value, str | bytes | list) else value for key, value in row.items()}
    return str(cut)[:RAW_BYTES].encode("utf-8", "backslashreplace")


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, "Parquet", error) from None


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        # Not a memory map: a file that shrinks under one kills the process.
        with pa.OSFile(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                # Offsets that point outside of the buffers would crash the process, not raise.
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(start, _ROWS)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, "Arrow", error) from None


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return DataError("cannot read the file: it is not there, or not for you", code="LK0113", where=str(path))
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return DataError(f"not a whole {kind} file: {reason}", code="LK0203", where=str(path), next="download or write it again")


def _listed(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text("utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"the saved dataset is not whole: {type(error).__name__}: {error}"
        raise DataError(what[:200], code="LK0203", where=str(path), next="save it again") from None
    return found if isinstance(found, list) else []


def _name(value: object, told_by: Path) -> str:
    """A plain name: what points elsewhere is nothing that `datasets` wrote."""
    if value == "" or (isinstance(value, str) and Path(value).name == value and value != ".."):
        return str(value)
    raise DataError(
        "the saved dataset names a file outside of its folder", code="LK0203", where=str(told_by), next="save it again"
    )
