"""Untrusted lines: any partition of a file yields each once, and each has an object or a reason."""

import json
import os
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import reading
from llmkit.data.reading import check_unchanged, count_lines, lines, parse, snapshot
from llmkit.errors import DataError

MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def spot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file that examples of a property write to in turn."""
    return tmp_path_factory.mktemp("reading") / "a.jsonl"


def _all(path: Path, **options: int) -> list[bytes]:
    return list(lines(path, 0, path.stat().st_size, **options))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"a": NaN}', "NaN at column 7 is no JSON number; write null"),
        (b'{"a": Infinity}', "Infinity at column 7"),
        (b'{"a": -Infinity}', "Infinity at column"),
        (b'{"a": 1e999}', "not JSON: number is infinity"),
        (b'{"a": "\\ud800"}', "half a character, a lone surrogate"),
        (b'{"a": "\\udc00x"}', "half a character, a lone surrogate"),
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
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 999 deep"),
        (b'{"a":' + b"[" * 999 + b"]" * 999 + b"}", "nested more than 999 deep"),
        (b'{"a":[' + b"{}," * 2_000_000 + b"{}]}", "holds more than 2000000 objects"),
    ],
)
def test_a_line_that_cannot_be_read_gets_a_reason(line: bytes, reason: str) -> None:
    found = parse(line)
    assert isinstance(found, str)
    assert reason in found
    assert len(found) < 200


def test_what_only_looks_wrong_is_read() -> None:
    assert parse(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}
    assert parse(b'{"a": 1, "a": 2}') == {"a": 2}
    assert parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert isinstance(parse(b'{"a":' * 999 + b"1" + b"}" * 999), dict)
    brackets = "[{\\" * 2000
    assert parse(json.dumps({brackets: brackets}).encode()) == {brackets: brackets}


def test_a_record_with_a_million_turns_is_read() -> None:
    found = parse(b'{"messages":[' + b'{"role":"user"},' * 999_999 + b'{"role":"user"}]}')
    assert isinstance(found, dict)
    assert len(found["messages"]) == 1_000_000


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(line: bytes) -> None:
    assert isinstance(parse(line), dict | str)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('a\\"{[', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a[", max_size=2), inner, max_size=3),
    max_leaves=20,
)


@given(VALUES)
def test_the_depth_is_that_of_the_value(value: object) -> None:
    def depth(part: object) -> int:
        inner = part if isinstance(part, list) else part.values() if isinstance(part, dict) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert reading._depth(orjson.dumps(value)) == depth(value)


LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"\r")), max_size=8)


@given(LINES, st.booleans(), st.booleans(), st.lists(st.integers(0, 100), max_size=6), st.integers(1, 14))
def test_any_partition_yields_every_line_once_and_in_order(
    spot: Path, parts: list[bytes], ended: bool, marked: bool, cuts: list[int], block: int
) -> None:
    body = b"\n".join(parts) + (b"\n" if ended else b"")
    if body.startswith(reading.UTF16_MARKS) or body.startswith(MARK):
        return
    spot.write_bytes(MARK * marked + body)
    size = spot.stat().st_size
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    ranges = list(pairwise(bounds))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK_BYTES", block)
        found = [list(lines(spot, start, end)) for start, end in ranges]
        assert [line for part in found for line in part] == _split(body)
        assert [count_lines(spot, start, end) for start, end in ranges] == [len(part) for part in found]


@given(LINES, st.integers(1, 8), st.integers(0, 60))
def test_a_line_over_the_bound_is_cut_and_the_rest_of_it_is_no_line(
    spot: Path, parts: list[bytes], limit: int, cut: int
) -> None:
    body = b"\n".join(parts)
    if body.startswith((*reading.UTF16_MARKS, MARK)):
        return
    spot.write_bytes(body)
    found = [*lines(spot, 0, cut, max_line_bytes=limit), *lines(spot, cut, len(body), max_line_bytes=limit)]
    if cut <= len(body):
        assert found == [line[: limit + 1] for line in _split(body)]


def _split(body: bytes) -> list[bytes]:
    """Lines by line feeds alone."""
    pieces = body.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + [piece for piece in pieces[-1:] if piece]


def test_a_byte_order_mark_is_no_text_and_utf16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK + b'{"a": 1}\r\n{"b": 2}')
    assert _all(path) == [b'{"a": 1}\r\n', b'{"b": 2}']
    path.write_bytes(MARK)
    assert _all(path) == []
    assert count_lines(path, 0, 3) == 0
    for encoding in ("utf-16", "utf-16-be"):
        path.write_bytes((b"\xfe\xff" if encoding == "utf-16-be" else b"") + '{"a": 1}'.encode(encoding))
        with pytest.raises(DataError, match="UTF-16") as caught:
            _all(path)
        assert "UTF-8" in caught.value.next


def test_a_line_of_70_megabytes_is_cut_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.seek(70_000_000)
        stream.write(b'"}\n{"b": 2}\n')
    found = _all(path)
    assert [len(line) for line in found] == [reading.MAX_LINE_BYTES + 1, 9]
    assert count_lines(path, 0, path.stat().st_size) == 2


def test_files_that_cannot_be_read_are_data_errors(tmp_path: Path) -> None:
    for use in (lambda path: list(lines(path, 0, 9)), lambda path: count_lines(path, 0, 9), snapshot):
        with pytest.raises(DataError, match="No such file") as caught:
            use(tmp_path / "none.jsonl")
        assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="cannot read the file"):
        list(lines(tmp_path, 0, 9))


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n")
    before = snapshot(path)
    check_unchanged(path, before)
    assert list(lines(path, 0, before.size)) == [b"{}\n"]
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(DataError, match="it grew from 3 to 6 bytes"):
        check_unchanged(path, before)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="it shrank from 3 to 0 bytes"):
        check_unchanged(path, before)
    path.write_bytes(b"[]\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="written anew"):
        check_unchanged(path, before)
    path.unlink()
    with pytest.raises(DataError, match="vanished") as caught:
        check_unchanged(path, before)
    assert caught.value.where == str(path)
