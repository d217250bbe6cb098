"""What the header writer writes, the reference reader and ours read."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.gguf import container, header
from llmkit.gguf.header import Slot

_TEXT = st.text(max_size=20)
_NAMES = st.from_regex(r"[a-z]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True)
_VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    _TEXT,
    st.lists(_TEXT, min_size=1, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)


@settings(deadline=None)
@given(keys=st.dictionaries(_NAMES, _VALUES, max_size=6), rows=st.lists(st.integers(1, 4), max_size=4, unique=True))
def test_every_key_and_tensor_comes_back(keys: dict[str, Any], rows: list[int]) -> None:
    slots, offset = [], 0
    for count in rows:
        slots.append(Slot(f"t{count}", (count, 32), GGMLQuantizationType.Q8_0, offset))
        offset = header.aligned(offset + 34 * count)
    opening = header.encode(keys, slots)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        path.write_bytes(opening + bytes(offset))
        ours = container.open_file(path)
        theirs = gguf.GGUFReader(path)
    assert dict(ours.metadata) == keys
    assert [(one.name, one.shape, one.offset) for one in ours.tensors] == [
        (slot.name, slot.shape, len(opening) + slot.offset) for slot in slots
    ]
    for key, value in keys.items():
        assert theirs.fields[key].contents() == value
    assert [one.data_offset for one in theirs.tensors] == [one.offset for one in ours.tensors]


def test_splits_count_in_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header.encode({"split.no": np.uint16(3), "split.tensors.count": np.int32(9)}, []))
    fields = gguf.GGUFReader(path).fields
    assert fields["split.no"].types == [gguf.GGUFValueType.UINT16]
    assert fields["split.tensors.count"].types == [gguf.GGUFValueType.INT32]


@pytest.mark.parametrize("value", [-1, 2**32, 1e300, "\ud800", [], None, {"a": 1}, [1, "x"], [2**31]])
def test_what_the_format_cannot_hold_names_its_key(value: Any) -> None:
    with pytest.raises(DataError, match=r"general\.name"):
        header.encode({"general.name": value}, [])
