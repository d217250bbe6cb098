"""Other files as JSON lines: every record in its place, every fault told, whatever the bytes."""

import datetime
import gzip
import io
import json
import math
import random
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data import elements as elements_module
from llmkit.data import tables, unpack
from llmkit.data.elements import elements
from llmkit.data.reading import parse
from llmkit.data.unpack import Unpacked, is_known, is_plain, to_lines
from llmkit.errors import DataError

DIALOGUE = {"messages": [{"role": "user", "content": '你好，\n“世界” [1] {2} \\ "'}, {"role": "assistant", "content": "嗨"}]}
PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{},:\n你', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"[', max_size=3), inner, max_size=3),
    max_leaves=12,
)


def _unpack(folder: Path, name: str, content: bytes) -> tuple[Unpacked, list[bytes]]:
    path = folder / name
    path.write_bytes(content)
    return _unpacked(path, folder)


def _unpacked(path: Path, folder: Path) -> tuple[Unpacked, list[bytes]]:
    out = folder / "out.jsonl.part"
    found = to_lines(path, out)
    written = out.read_bytes()
    assert found.lines == written.count(b"\n")
    return found, written.splitlines()


# Endings


@pytest.mark.parametrize(
    ("name", "content", "plain"),
    [
        ("a.jsonl", b"[", True),
        ("a.NDJSON", b"", True),
        ("a.json", b'{"a": 1}\n{"a": 2}', True),
        ("a.json", b"", True),
        ("a.json", b" \n [1]", False),
        ("a.json", b"\xef\xbb\xbf[1]", False),
        ("a.json", b"{\n  1", False),
        ("a.jsonl.gz", b"", False),
        ("a.csv", b"", False),
    ],
)
def test_a_file_is_plain_if_it_holds_a_value_a_line(tmp_path: Path, name: str, content: bytes, plain: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_plain(tmp_path / name) == plain
    assert is_known(tmp_path / name)


def test_what_is_no_data_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.txt", "a", "a.zip", "a.parquet.gz", "a.pkl"):
        assert not is_known(tmp_path / name)
        with pytest.raises(DataError, match="cannot read"):
            _unpack(tmp_path, name, b"x")
    with pytest.raises(DataError, match="No such file"):
        to_lines(tmp_path / "none.csv", tmp_path / "out")


@given(st.sampled_from(unpack.ENDINGS), st.booleans(), st.binary(max_size=80))
def test_no_bytes_make_any_kind_of_file_raise_anything_but_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, packed: bool, content: bytes
) -> None:
    packing = next((packing for packing in PACK if ending.endswith(packing)), "")
    with suppress(DataError):
        _unpack(tmp_path_factory.getbasetemp(), "any" + ending, PACK[packing](content) if packing and packed else content)


# Compressed files


@pytest.mark.parametrize("packing", PACK)
def test_a_compressed_file_of_several_members_is_the_lines_in_it(tmp_path: Path, packing: str) -> None:
    parts = [b'{"a": 1}\n\n{"b"', b': 2}\n{"c": 3}']
    found, lines = _unpack(tmp_path, "a.jsonl" + packing, b"".join(map(PACK[packing], parts)))
    assert lines == b"".join(parts).split(b"\n")
    assert found == Unpacked(4, {})


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("inner", [".json", ".csv"])
def test_arrays_and_tables_may_be_compressed(tmp_path: Path, packing: str, inner: str) -> None:
    content = {".json": b'[{"a": "1"},\n{"a": "2"}]', ".csv": b"a\n1\n2\n"}[inner]
    _, lines = _unpack(tmp_path, f"a{inner}{packing}", PACK[packing](content))
    assert [json.loads(line) for line in lines] == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("packing", PACK)
def test_a_truncated_file_is_told_wherever_it_ends(tmp_path: Path, packing: str) -> None:
    packed = PACK[packing](b"".join(b'{"a": %d}\n' % random.getrandbits(60) for _ in range(200)))
    for size in range(2, len(packed), 97):
        with pytest.raises(DataError, match=rf"ends too early: \d+ records could be read, {size} of {size} bytes") as caught:
            _unpack(tmp_path, "a.jsonl" + packing, packed[:size])
        assert caught.value.next == "download it again"


@pytest.mark.parametrize("packing", PACK)
def test_damaged_bytes_are_told(tmp_path: Path, packing: str) -> None:
    packed = bytearray(PACK[packing](random.randbytes(5000)))
    packed[0] ^= 255
    with pytest.raises(DataError, match="is damaged"):
        _unpack(tmp_path, "a.jsonl" + packing, bytes(packed))
    packed[0] ^= 255
    with pytest.raises(DataError, match="is damaged"):
        _unpack(tmp_path, "a.jsonl" + packing, bytes(packed) + b"more")


@pytest.mark.parametrize("packing", PACK)
def test_a_bomb_takes_no_memory(tmp_path: Path, packing: str) -> None:
    path = tmp_path / ("a.jsonl" + packing)
    path.write_bytes(PACK[packing](bytes(100_000_000)))
    tracemalloc.start()
    try:
        assert to_lines(path, Path("/dev/null")).lines == 1
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


# JSON arrays


@given(st.lists(JSON_VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_the_elements_of_an_array_are_what_json_says(
    values: list[object], indent: int | None, ascii_: bool, block: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements_module, "_BLOCK_BYTES", block)
        found = list(elements(io.BytesIO(f" {text}\n ".encode()), Path("a.json")))
        assert [json.loads(element) for element in found] == values
        stream = "\n".join(json.dumps(value, indent=indent) for value in values)
        assert [json.loads(e) for e in elements(io.BytesIO(stream.encode()), Path("a.json"), array=False)] == values


@given(st.binary(max_size=60).map(lambda tail: b"[" + tail))
def test_no_bytes_make_an_array_anything_but_elements_or_a_data_error(content: bytes) -> None:
    with suppress(DataError):
        list(elements(io.BytesIO(content), Path("a.json")))


def test_an_array_becomes_lines_and_a_bad_element_is_left_to_its_reader(tmp_path: Path) -> None:
    bad = b'{"a": tru}, 7, "x", {"a": "\xff"}, {"a": "1\n2"}'
    content = b"\xef\xbb\xbf[" + json.dumps(DIALOGUE, indent=2).encode() + b",\r\n" + bad + b', {"b":\n NaN}]\n'
    found, lines = _unpack(tmp_path, "a.json", content)
    assert found == Unpacked(7, {})
    assert parse(lines[0]) == DIALOGUE
    assert all(isinstance(parse(line), str) for line in lines[1:])


@pytest.mark.parametrize(
    ("content", "what", "line"),
    [
        (b'[{"a": 1}\n {"b": 2}]', "a comma is missing between two elements, at byte 11", 2),
        (b'[{"a": 1},\n\n]', "a value is missing after the last comma, at byte 12", 3),
        (b'[{"a": 1},,{}]', "no JSON value begins with ,", 1),
        (b"[}", "no JSON value begins with }", 1),
        (b'[{"a": 1}', "the closing bracket is missing", 1),
        (b'[\n{"a": 1}, {"b": "', "the element that begins at byte 12 does not end", 2),
        (b'[{"a": [1}]', "the closing bracket is missing", 1),
        (b'["a', "does not end", 1),
        (b"[1", "the closing bracket is missing", 1),
        (b"[1]\n[2]", "text after the end of the array, at byte 4", 2),
    ],
)
def test_broken_syntax_between_elements_is_told_with_its_place(tmp_path: Path, content: bytes, what: str, line: int) -> None:
    with pytest.raises(DataError) as caught:
        _unpack(tmp_path, "a.json", content)
    assert what in caught.value.what
    assert caught.value.where == f"{tmp_path / 'a.json'}:{line}"
    assert caught.value.next


def test_an_element_nested_a_hundred_thousand_deep_is_one_line(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    _, lines = _unpack(tmp_path, "a.json", b"[" + deep + b', {"a": 1}]')
    assert lines == [deep, b'{"a": 1}']


def test_an_element_over_the_bound_is_a_bad_record_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (elements_module, unpack):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(elements_module, "_BLOCK_BYTES", 64)
    long = [{"a": "x" * 50}] * 100
    found, lines = _unpack(tmp_path, "a.json", json.dumps([{"a": 1}, long, {"a": 2}]).encode())
    assert lines == [b'{"a": 1}', b"null", b'{"a": 2}']
    assert "longer than 1000 bytes" in found.bad[2].reason
    assert found.bad[2].raw.startswith('[{"a": "xxx')
    with pytest.raises(DataError, match="the element that begins at byte 11 does not end"):
        _unpack(tmp_path, "a.json", b'[{"a": 1}, {"b": "' + b"x" * 5000 + b'"}]')


def test_objects_that_span_lines_are_read_one_after_another(tmp_path: Path) -> None:
    content = "\n".join(json.dumps({"n": n, **DIALOGUE}, indent=2, ensure_ascii=False) for n in range(3))
    _, lines = _unpack(tmp_path, "a.json", content.encode())
    assert [json.loads(line) for line in lines] == [{"n": n, **DIALOGUE} for n in range(3)]


# Tables

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5), st.sampled_from([(".csv", ","), (".tsv", "\t")]))
def test_a_table_that_csv_wrote_comes_back(tmp_path_factory, rows: list[list[str]], kind: tuple[str, str]) -> None:
    import csv

    text = io.StringIO(newline="")
    csv.writer(text, delimiter=kind[1], quoting=csv.QUOTE_ALL).writerows([["q", "答"], *rows])
    folder = tmp_path_factory.mktemp("table")
    _, lines = _unpack(folder, "a" + kind[0], text.getvalue().encode("utf-8-sig"))
    expected = [{key: cell for key, cell in zip(("q", "答"), row, strict=True) if cell} for row in rows]
    assert [json.loads(line) for line in lines] == [row for row in expected if row]


def test_cells_that_hold_json_become_json_where_the_column_says_so(tmp_path: Path) -> None:
    nested = json.dumps(DIALOGUE["messages"], ensure_ascii=False).replace('"', '""')
    content = f'messages,note,prompt\n"{nested}",[1],\n[oops,,{{}}\n'.encode()
    _, lines = _unpack(tmp_path, "a.csv", content)
    assert [json.loads(line) for line in lines] == [
        {"messages": DIALOGUE["messages"], "note": "[1]"},
        {"messages": "[oops", "prompt": {}},
    ]


def test_a_bad_row_of_a_table_keeps_its_place_and_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 100)
    rows = [b"1,2", b"1,2,3", b"\xff,2", b'"a"b,2', b"x" * 150 + b",2", b"a\0,2", b",", b"", b"3,4", b'"open,5']
    found, lines = _unpack(tmp_path, "a.csv", b"\r\n".join([b"a,b", *rows]))
    assert [line for line in lines if line != b"null"] == [
        b'{"a":"1","b":"2"}',
        b'{"a":"a\\u0000","b":"2"}',
        b'{"a":"3","b":"4"}',
    ]
    assert {number: bad.reason.partition(": ")[2] or bad.reason for number, bad in found.bad.items()} == {
        2: "3 cells, but the header has 2",
        3: "not UTF-8",
        4: "',' expected after '\"'",
        5: "longer than 100 bytes; is a quote missing?",
        8: "unexpected end of data",
    }
    assert found.bad[3].raw == "\\xff,2"
    assert all(lines[number - 1] == b"null" for number in found.bad)
    assert "NUL" in parse(lines[5])


def test_a_cell_may_be_longer_than_csv_allows_by_itself(tmp_path: Path) -> None:
    _, lines = _unpack(tmp_path, "a.csv", b"a\n" + b"x" * 200_000 + b"\n")
    assert len(json.loads(lines[0])["a"]) == 200_000


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("问,答\n".encode("gbk"), "the header is not UTF-8"),
        (b"a,b,a\n", "two columns are named 'a'"),
        (b'"a\n', "the header is not a row"),
        ("a,b\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_header_that_names_no_columns_is_a_data_error(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        _unpack(tmp_path, "a.csv", content)


def test_too_many_bad_rows_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_BAD", 3)
    assert len(_unpack(tmp_path, "a.csv", b"a\n" + b"1,2\n" * 3)[0].bad) == 3
    with pytest.raises(DataError, match="over 3 records cannot be read"):
        _unpack(tmp_path, "a.csv", b"a\n" + b"1,2\n" * 4)


# Columnar files


def _table_of(values: list[dict[str, object]]):
    import pyarrow as pa

    return pa.Table.from_pylist(values)


def _write_table(path: Path, table) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_rows_of_columnar_files_become_lines_in_order(tmp_path: Path, name: str) -> None:
    values = [{"n": n, **DIALOGUE, "when": datetime.date(2024, 1, 2), "x": math.nan, "d": Decimal("1.50")} for n in range(1000)]
    found, lines = _unpacked(_write_table(tmp_path / name, _table_of(values)), tmp_path)
    assert found == Unpacked(1000, {})
    assert [json.loads(line) for line in lines] == [value | {"when": "2024-01-02", "x": None, "d": "1.50"} for value in values]


def test_bytes_and_broken_text_in_a_row_are_reasons(tmp_path: Path) -> None:
    import pyarrow as pa

    text = pa.array([b"ok", b"\xff", b"yes"]).view(pa.string())
    found, lines = _unpacked(_write_table(tmp_path / "a.parquet", pa.table({"text": text})), tmp_path)
    assert lines == [b'{"text":"ok"}', b"null", b'{"text":"yes"}']
    assert "not UTF-8" in found.bad[2].reason
    found, lines = _unpacked(_write_table(tmp_path / "b.parquet", _table_of([{"image": b"\x89PNG" * 9999}])), tmp_path)
    assert lines == [b"null"]
    assert "holds bytes that are no text" in found.bad[1].reason
    assert "PNG" in found.bad[1].raw


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_a_damaged_columnar_file_is_a_data_error_or_reads_as_it_is(tmp_path: Path, name: str) -> None:
    path = _write_table(tmp_path / name, _table_of([{"n": n, **DIALOGUE} for n in range(50)]))
    whole = path.read_bytes()
    draw = random.Random(1)
    told = []
    for cut in range(0, len(whole), len(whole) // 20):
        for content in (whole[:cut], whole[:cut] + draw.randbytes(40) + whole[cut + 40 :]):
            path.write_bytes(content)
            try:
                _unpacked(path, tmp_path)
            except DataError as error:
                told.append(error.what)
    assert len(told) >= 15
    assert all("not a whole" in what for what in told)


def test_a_folder_that_datasets_saved_is_read_split_by_split(tmp_path: Path) -> None:
    import datasets

    values = [{"n": n, **DIALOGUE} for n in range(5)]
    one = datasets.Dataset.from_list(values)
    one.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(train=one, test=one.select([1])).save_to_disk(str(tmp_path / "both"))
    assert is_known(tmp_path / "one")
    assert is_known(tmp_path / "both")
    assert not is_known(tmp_path)
    for name, expected in (("one", values), ("both", [*values, values[1]])):
        found, lines = _unpacked(tmp_path / name, tmp_path)
        assert not found.bad
        assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"_data_files": [{"filename": "../../secret.arrow"}]}', b"[" * 9999])
def test_a_saved_folder_that_is_not_whole_is_a_data_error(tmp_path: Path, state: bytes) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_info.json").write_bytes(b"{}")
    (folder / "state.json").write_bytes(state)
    with pytest.raises(DataError, match="saved dataset") as caught:
        _unpacked(folder, tmp_path)
    assert caught.value.next == "save it again"


def test_a_file_that_grows_while_it_is_unpacked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\n1\n")
    rows = tables.rows

    def growing(*args, **options):
        yield from rows(*args, **options)
        path.write_bytes(b"a\n1\n2\n")

    monkeypatch.setattr(tables, "rows", growing)
    with pytest.raises(DataError, match="it grew from 4 to 6 bytes"):
        to_lines(path, tmp_path / "out")
