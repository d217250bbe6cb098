"""The canonical record and its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.record import Record, read_records, write_records
from llmkit.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), max_size=4
)
SCORES = st.none() | st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.builds(Record, MESSAGES, TEXTS, st.none() | TEXTS, TEXTS, SCORES)


@given(RECORDS)
def test_a_record_survives_its_line(record: Record) -> None:
    line = record.to_json()
    assert b"\n" not in line
    assert Record.from_json(line) == record
    assert json.loads(line)["id"] == record.id


@given(RECORDS, RECORDS)
def test_records_share_an_id_if_and_only_if_they_say_the_same(one: Record, other: Record) -> None:
    same = (one.messages, one.rejected) == (other.messages, other.rejected)
    assert (one.id == other.id) == same
    assert one.id == one._replace(source="elsewhere", pair="edit", score=1.0).id
    assert len(one.id) == 16


def test_the_id_ignores_the_source_and_the_order_of_keys() -> None:
    one = Record([{"role": "user", "content": "你好"}], "a:1")
    other = Record([{"content": "你好", "role": "user"}], "b:2")
    assert one.id == other.id != one._replace(rejected="no").id


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"{}",
        b'{"messages": 3}',
        b'{"messages": [3]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": 3}]}',
        b'{"messages": [], "rejected": 3}',
        b'{"messages": [], "source": null}',
        b"\xff",
    ],
)
def test_a_line_that_is_no_record_is_a_data_error(line: bytes) -> None:
    with pytest.raises(DataError, match="not a canonical record"):
        Record.from_json(line)


def test_records_are_written_one_a_line_and_a_bad_line_is_named(tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    records = [Record([{"role": "user", "content": f"{i}\n{i}"}], "s") for i in range(3)]
    assert write_records(path, records) == 3
    assert list(read_records(path)) == records
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.where == f"{path}:4"
    with pytest.raises(DataError, match="cannot read"):
        list(read_records(tmp_path / "missing.jsonl"))
