"""Untrusted lines: every one becomes an entry."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.reading import entries, parse
from llmkit.errors import DataError


def _write(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at position 7"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff"),
        (b'{"a": "\0"}', "NUL"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"a": "\\\\\\u0000"}', "NUL"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"1", "a number"),
        (b"true", "a boolean"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_gets_a_reason(line: bytes, reason: str) -> None:
    found = parse(line)
    assert isinstance(found, str)
    assert reason in found
    assert len(found) < 200


def test_a_backslash_before_u0000_is_text_and_no_nul() -> None:
    assert parse(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(line: bytes) -> None:
    assert isinstance(parse(line), dict | str)


KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)


@given(st.lists(st.dictionaries(KEYS, st.integers(-9, 9), max_size=3), max_size=5))
def test_every_object_is_read_with_its_line_number(tmp_path_factory, values) -> None:
    path = _write(tmp_path_factory.mktemp("read"), b"\n\r\n".join(json.dumps(value).encode() for value in values))
    assert [(entry.line, entry.value) for entry in entries(path)] == [(2 * i + 1, v) for i, v in enumerate(values)]


def test_blank_lines_are_no_records_and_a_byte_order_mark_is_no_text(tmp_path) -> None:
    path = _write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n  \n\t\r\n\n{"b": 2}')
    assert [(entry.line, entry.value) for entry in entries(path)] == [(1, {"a": 1}), (5, {"b": 2})]


def test_a_line_over_the_bound_is_cut_and_the_next_is_read(tmp_path) -> None:
    path = _write(tmp_path, b'{"a": "' + b"x" * 1000 + b'"}\n{"b": 2}\n' + b"y" * 500)
    found = list(entries(path, max_line_bytes=100))
    assert [entry.line for entry in found] == [1, 2, 3]
    assert found[1].value == {"b": 2}
    assert all("longer than 100 bytes" in str(found[i].value) and len(found[i].raw) == 101 for i in (0, 2))


@pytest.mark.parametrize("size", range(96, 106))
def test_the_bound_loses_no_line_at_its_edge(tmp_path, size: int) -> None:
    long = b'{"a":"' + b"x" * (size - 8) + b'"}'
    path = _write(tmp_path, long + b"\n" + b'{"b": 2}\n')
    found = list(entries(path, max_line_bytes=100))
    assert [entry.line for entry in found] == [1, 2]
    assert isinstance(found[0].value, dict) == (size + 1 <= 100)
    assert found[1].value == {"b": 2}


def test_other_endings_and_missing_files_are_data_errors(tmp_path) -> None:
    with pytest.raises(DataError, match=r"cannot read \.csv"):
        list(entries(_write(tmp_path, b"a,b", "a.csv")))
    with pytest.raises(DataError, match="without ending"):
        list(entries(_write(tmp_path, b"{}", "a")))
    with pytest.raises(DataError, match="No such file"):
        list(entries(tmp_path / "none.jsonl"))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="cannot read the file"):
        list(entries(folder))
