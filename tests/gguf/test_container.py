"""The container is read as what a stranger wrote: right files to the value, wrong ones refused in one line."""

import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.gguf.container import open_file, open_split
from tests.gguf import raw_gguf
from tests.gguf.raw_gguf import Tensor, Value

F32 = GGMLQuantizationType.F32
_INTEGERS = {"u8": (0, 2**8 - 1), "i8": (-(2**7), 2**7 - 1), "u16": (0, 2**16 - 1), "i32": (-(2**31), 2**31 - 1)}
_INTEGERS |= {"u64": (0, 2**64 - 1), "i64": (-(2**63), 2**63 - 1)}


def test_what_llama_cpps_own_reader_reads_is_what_we_read(exported: Callable[..., Path]) -> None:
    path = exported("llama3", "q8_0")
    ours, theirs = open_file(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    assert [(tensor.name, tensor.type, tensor.offset, tensor.size) for tensor in ours.tensors] == [
        (tensor.name, tensor.tensor_type, tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors
    ]
    assert [tensor.shape for tensor in ours.tensors] == [tuple(reversed(tensor.shape.tolist())) for tensor in theirs.tensors]


def _scalars() -> st.SearchStrategy[Value]:
    integers = [st.builds(Value, st.just(kind), st.integers(low, high)) for kind, (low, high) in _INTEGERS.items()]
    floats = st.floats(allow_nan=False, width=32).map(lambda value: Value("f32", value))
    return st.one_of(*integers, floats, st.booleans().map(lambda value: Value("bool", value)), st.text().map(_text))


def _text(text: str) -> Value:
    return Value("str", text)


def _values() -> st.SearchStrategy[Value]:
    arrays = st.one_of(
        st.lists(st.text(), max_size=5).map(lambda value: Value("[str]", value)),
        st.lists(st.integers(0, 255), max_size=5).map(lambda value: Value("[u8]", value)),
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3).map(
            lambda value: Value("[[u32]]", value)
        ),
    )
    return st.one_of(_scalars(), arrays)


@settings(max_examples=40, deadline=None)
@given(
    keys=st.dictionaries(st.text(min_size=1).filter(str.isprintable), _values(), max_size=6),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), max_size=4),
    version=st.sampled_from([2, 3]),
)
def test_every_key_and_tensor_comes_back(
    keys: dict[str, Value], shapes: list[tuple[int, ...]], version: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = {f"t{number}": np.full(shape, number, np.float32) for number, shape in enumerate(shapes)}
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    raw_gguf.write(path, list(keys.items()), [raw_gguf.f32(*item) for item in arrays.items()], version=version)
    found = open_file(path)
    assert found.version == version
    assert dict(found.metadata) == {key: value.value for key, value in keys.items()}
    data = path.read_bytes()
    for tensor in found.tensors:
        stored = np.frombuffer(data[tensor.offset : tensor.offset + tensor.size], "<f4").reshape(tensor.shape)
        assert np.array_equal(stored, arrays[tensor.name])
        assert tensor.offset % found.alignment == 0
    assert len(found.tensors) == len(arrays)


def _one(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = F32, offset: int | None = None) -> Tensor:
    return Tensor(name, shape, kind, b"\0" * 16, offset)


@pytest.mark.parametrize(
    ("keys", "tensors", "what"),
    [
        ([("a", Value("u8", 1)), ("a", Value("u8", 2))], [], "stands there twice"),
        ([("", Value("u8", 1))], [], "a key is ''"),
        ([("a\nb", Value("u8", 1))], [], "a key is"),
        ([("general.alignment", Value("u32", 0))], [], "power of two"),
        ([("general.alignment", Value("u32", 48))], [], "power of two"),
        ([("general.alignment", Value("str", "32"))], [], "power of two"),
        ([("deep", Value("[[[[[u8]]]]]", [[[[[1]]]]]))], [], "does not fit"),
        ([], [_one(), _one()], "twice"),
        ([], [_one("a"), _one("b", offset=0)], "overlap"),
        ([], [_one(offset=8)], "not aligned"),
        ([], [_one(offset=2**40)], "ends before tensor t"),
        ([], [_one(shape=(0,))], "impossible shape"),
        ([], [_one(shape=(2**62, 2**62))], "impossible shape"),
        ([], [_one(shape=(2**63 + 4,))], "impossible shape"),
        ([], [_one(shape=())], "0 dimensions"),
        ([], [_one(shape=(1, 1, 1, 1, 4))], "5 dimensions"),
        ([], [_one(kind=4711)], "unknown type 4711"),
        ([], [_one(kind=GGMLQuantizationType.Q4_K)], "packs 256"),
        ([], [_one("n" * 64)], "longer than 63 bytes"),
    ],
)
def test_each_damage_has_its_own_words(
    keys: Sequence[tuple[str, Value]], tensors: Sequence[Tensor], what: str, tmp_path: Path
) -> None:
    path = raw_gguf.write(tmp_path / "damaged.gguf", keys, tensors)
    with pytest.raises(DataError, match=what) as caught:
        open_file(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "too short"),
        (b"GGML" + b"\0" * 40, "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "cannot hold"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "cannot hold"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"\0" * 32, "ends within"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + b"\0" * 8, "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**62), "does not fit"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 2**62), "ends within k"),
        (b"GGUF" + struct.pack("<IQQQ1sIB", 3, 0, 1, 1, b"\xff", 0, 1) + b"\0" * 8, "not UTF-8"),
    ],
)
def test_a_header_that_lies_about_itself_is_refused(data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "lying.gguf").write_bytes(data)
    with pytest.raises(DataError, match=what):
        open_file(tmp_path / "lying.gguf")


def test_a_file_cut_anywhere_is_a_data_error(tmp_path: Path) -> None:
    data = raw_gguf.tiny(tmp_path / "whole.gguf").read_bytes()
    last = open_file(tmp_path / "whole.gguf").tensors[-1]
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200), *range(200, last.offset + last.size, 197)]:
        cut.write_bytes(data[:length])
        with pytest.raises(DataError):
            open_file(cut)


@pytest.mark.parametrize("place", ["nothing.gguf", "folder", "pipe", "nul\0byte"])
def test_what_is_no_file_is_refused_and_not_waited_for(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError):
        open_file(tmp_path / place)


def test_damaged_text_is_readable_all_the_same(tmp_path: Path) -> None:
    data = raw_gguf.write(tmp_path / "text.gguf", [("k", Value("str", "abXcd"))], []).read_bytes()
    (tmp_path / "text.gguf").write_bytes(data.replace(b"abXcd", b"ab\xffcd"))
    assert open_file(tmp_path / "text.gguf").metadata["k"] == "ab\ufffdcd"


def test_a_vocabulary_of_262144_tokens_is_read_within_a_second(tmp_path: Path) -> None:
    tokens = [f"token{number}" for number in range(262_144)]
    path = raw_gguf.write(tmp_path / "large.gguf", [("tokens", Value("[str]", tokens))], [])
    started = time.process_time()
    assert open_file(path).metadata["tokens"] == tokens
    assert time.process_time() - started < 1


def _parts(folder: Path, name: str = "m", count: int = 3, *, shift: int = 0) -> list[Path]:
    """A model in parts, its first holding the metadata and each one tensor."""
    paths = []
    for number in range(count):
        split = {"no": Value("u16", number), "count": Value("u16", count), "tensors.count": Value("i32", count)}
        keys = [(f"split.{key}", value) for key, value in split.items()]
        keys += [("general.architecture", Value("str", "llama"))] if number == 0 else []
        tensor = raw_gguf.f32(f"t{number + shift}", np.full(4, number, np.float32))
        paths.append(raw_gguf.write(folder / f"{name}-{number + 1:05d}-of-{count:05d}.gguf", keys, [tensor]))
    return paths


def test_any_part_gives_all_parts_in_order(tmp_path: Path) -> None:
    paths = _parts(tmp_path)
    for path in paths:
        found = open_split(path)
        assert [part.path for part in found] == paths
        assert found[0].metadata["general.architecture"] == "llama"
        assert [tensor.name for part in found for tensor in part.tensors] == ["t0", "t1", "t2"]


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = _parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(DataError, match=r"1 of 3 parts are missing: m-00002-of-00003\.gguf"):
        open_split(paths[0])


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    paths = _parts(tmp_path)
    stray = _parts(tmp_path, "other", shift=-1)
    stray[1].replace(paths[1])  # holds t0, as the first part does
    with pytest.raises(DataError, match="the parts hold 2 tensors"):
        open_split(paths[0])
    stray[2].replace(paths[1])
    with pytest.raises(DataError, match="not part 2 of 3"):
        open_split(paths[0])


def test_a_renamed_part_and_an_absurd_count_are_refused(tmp_path: Path) -> None:
    paths = _parts(tmp_path)
    with pytest.raises(DataError, match="its name does not"):
        open_split(paths[0].rename(tmp_path / "renamed.gguf"))
    many = [("split.count", Value("u16", 65535)), ("split.no", Value("u16", 0))]
    with pytest.raises(DataError, match="65534 of 65535 parts are missing"):
        open_split(raw_gguf.write(tmp_path / "x-00001-of-65535.gguf", many, []))


def test_one_file_is_its_own_only_part(tmp_path: Path) -> None:
    path = raw_gguf.tiny(tmp_path / "tiny.gguf")
    assert [part.path for part in open_split(path)] == [path]
    assert len(open_file(path).tensors) == len(raw_gguf.tiny_tensors())
