"""Importance matrices in llama.cpp's two formats: read as llama-quantize reads them, written as llama-imatrix writes them."""

import os
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llmkit.errors import DataError
from llmkit.gguf import architectures, container, imatrix
from llmkit.gguf.encode import encode as encode_rows
from llmkit.gguf.imatrix import Imatrix
from llmkit.gguf.tokenizer import read_json
from llmkit.gguf.types import ModelShape, assign, file_type

NAMES = st.sampled_from([f"blk.{layer}.{part}.weight" for layer in range(12) for part in ("attn_q", "ffn_down")])
SUMS = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 2.0**120, width=32))
MATRICES = st.dictionaries(NAMES, st.tuples(SUMS, st.integers(0, 1 << 24)), min_size=1, max_size=6)
Q = "blk.0.attn_q.weight"


def legacy(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    """As `save_imatrix_legacy` writes it."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return data + tail


def stored(path: Path, sums: np.ndarray, counts: np.ndarray, *, kind: str = "imatrix", suffix: str = ".counts") -> Path:
    """A GGUF file by the reference package's writer, which names an architecture, as converters in Python do."""
    writer = gguf.GGUFWriter(path, "none")
    writer.add_type(kind)
    writer.add_tensor(f"{Q}.in_sum2", sums)
    writer.add_tensor(f"{Q}{suffix}", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=50, deadline=None)
@given(found=MATRICES)
def test_what_is_written_is_read_again(
    found: dict[str, tuple[np.ndarray, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "x.gguf"
    imatrix.write(imatrix.from_measured(found, dataset="train.jsonl"), path)
    back = imatrix.read(path)
    assert back.names == found.keys()
    assert (back.datasets, back.chunk_size) == (("train.jsonl",), 512)
    assert back.chunks == max(rows for _, rows in found.values()) // 512
    for name, (sums, rows) in found.items():
        # C's float division, value by value.
        mean = [np.float32(value) / np.float32(rows) if rows else np.float32(1) for value in sums]
        assert back.importance(name).tobytes() == np.array(mean, np.float32).tobytes()
    assert back.importance("blk.99.attn_q.weight") is None


def test_the_file_is_laid_out_as_llama_imatrix_lays_it_out(tmp_path: Path) -> None:
    found = {f"blk.{layer}.attn_q.weight": (np.full(6, layer + 1, np.float32), 600) for layer in (10, 2)}
    imatrix.write(imatrix.from_measured(found, dataset="d"), tmp_path / "x.gguf")
    file = container.open_file(tmp_path / "x.gguf")
    assert list(file.metadata.items()) == [
        ("general.type", "imatrix"),
        ("imatrix.datasets", ["d"]),
        ("imatrix.chunk_count", 1),
        ("imatrix.chunk_size", 512),
    ]
    layout = [(tensor.name.removeprefix("blk."), tensor.shape) for tensor in file.tensors]
    ordered = [
        (f"{layer}.attn_q.weight.{part}", shape) for layer in (10, 2) for part, shape in (("in_sum2", (6,)), ("counts", (1,)))
    ]
    assert layout == ordered
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_an_older_file_holds_means_times_calls(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    tail = struct.pack("<ii", 7, 8) + b"wiki.txt"
    path.write_bytes(legacy((Q.encode(), 3, [1.0, 2.0, 0.0]), (b"output.weight", 0, [5.0]), tail=tail))
    found = imatrix.read(path)
    assert found.importance(Q).tolist() == [np.float32(1) / np.float32(3), np.float32(2) / np.float32(3), 0.0]
    assert found.importance("output.weight").tolist() == [5.0]
    assert (found.datasets, found.chunks) == (("wiki.txt",), 7)
    path.write_bytes(legacy((Q.encode(), 3, [1.0])))
    assert imatrix.read(path).names == {Q}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0",
        legacy(),
        legacy((Q.encode(), 1, [1.0]))[:-1],
        legacy((Q.encode(), 1, [])),
        legacy((Q.encode(), 1, [1.0]), (Q.encode(), 1, [1.0])),
        legacy((Q.encode(), -1, [1.0])),
        legacy((Q.encode(), 1, [float("nan")])),
        legacy((Q.encode(), 1, [-1.0])),
        legacy((b"\xff\xfe", 1, [1.0])),
        legacy((Q.encode(), 1, [1.0]), tail=struct.pack("<ii", 1, 1 << 29)),
        struct.pack("<i", 1 << 30),
        struct.pack("<ii", 1, -5),
        struct.pack("<ii", 1, 1 << 30),
        struct.pack("<ii4sii", 1, 4, b"name", 1, 1 << 28),
        b"GGUF" + bytes(40),
        b"no matrix at all, just a text that somebody gave" * 9,
    ],
)
def test_a_damaged_file_is_a_data_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(DataError):
        imatrix.read(path)


def test_a_gguf_file_that_is_no_dense_importance_matrix_is_a_data_error(tmp_path: Path) -> None:
    ones, one = np.ones(8, np.float32), np.ones(1, np.float32)
    path = tmp_path / "x.gguf"
    assert imatrix.read(stored(path, ones, one)).importance(Q).tolist() == [1.0] * 8
    for sums, counts, says in (
        (np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), "experts"),
        (ones.astype(np.float16), one, "F16"),
        (ones * np.float32("nan"), one, "not finite"),
        (-ones, one, "below zero"),
        (ones, one * np.float32("nan"), "count nan"),
        (ones, -one, "count -1"),
        (ones, one * np.float32(3e38), "count 3"),
    ):
        with pytest.raises(DataError, match=says):
            imatrix.read(stored(path, sums, counts))
    with pytest.raises(DataError, match="no importance matrix"):
        imatrix.read(stored(path, ones, one, kind="model"))
    with pytest.raises(DataError, match="lacks"):
        imatrix.read(stored(path, ones, one, suffix=".count"))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), older=st.booleans())
def test_no_damage_is_more_than_a_data_error(
    data: st.DataObject, older: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "x"
    if older:
        path.write_bytes(legacy((Q.encode(), 3, [1.0, 2.0]), (b"output.weight", 1, [5.0]), tail=struct.pack("<ii", 1, 0)))
    else:
        stored(path, np.ones(8, np.float32), np.ones(1, np.float32))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = imatrix.read(path)
    except DataError:
        return
    assert all(np.isfinite(found.importance(name)).all() for name in found.names)


def test_what_is_no_file_is_a_data_error(tmp_path: Path) -> None:
    paths = [tmp_path, tmp_path / "none", Path("a\0b")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        paths.append(tmp_path / "pipe")
    for path in paths:
        with pytest.raises(DataError):
            imatrix.read(path)


def test_an_empty_matrix_or_one_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    for found in ({}, {Q: (np.array([np.inf], np.float32), 1)}):
        with pytest.raises(DataError):
            imatrix.write(imatrix.from_measured(found, dataset="d"), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_the_matrix_of_another_model_does_not_fit() -> None:
    matrix = Imatrix({Q: np.ones(8, np.float32)}, {Q: 1})
    matrix.require_fit([(Q, (3, 8)), ("output.weight", (5, 8))])
    with pytest.raises(DataError, match="16 columns, not 8"):
        matrix.require_fit([(Q, (3, 16))])
    with pytest.raises(DataError, match=r"no tensor|there is no"):
        matrix.require_fit([("blk.0.attn_qkv.weight", (3, 8))])


def test_the_matrices_of_the_layers_are_measured_and_nothing_else(llama3_dir: Path) -> None:
    architecture, config = architectures.parse(read_json(llama3_dir / "config.json"), where="")
    names = imatrix.measured(architecture.tensors(config))
    assert len(names) == 7 * config.num_hidden_layers
    assert names["model.layers.2.mlp.down_proj.weight"] == "blk.2.ffn_down.weight"
    assert not {"token_embd.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias"} & set(names.values())


@pytest.mark.slow
def test_a_matrix_from_dialogues_brings_a_quantized_model_closer_on_others(smollm2: Path, tmp_path: Path) -> None:
    import torch
    from chatterbot_corpus import __file__ as corpus

    from llmkit.data import chatterbot
    from llmkit.engine import divergence, loading, templates
    from llmkit.engine import imatrix as measuring
    from llmkit.engine.mask import encode
    from tests.training import Tally

    tokenizer, template = loading.load_tokenizer(smollm2), templates.resolve("model", smollm2)
    found, _ = chatterbot.read_corpus(Path(corpus).parent / "data", ["en"])
    records = [{"id": str(number), **record} for number, record in enumerate(found)]
    held_out = [encode(record["messages"], tokenizer, template, last_only=True) for record in records[::80]]
    others = [record for number, record in enumerate(records) if number % 80]

    architecture, config = architectures.parse(read_json(smollm2 / "config.json"), where="")
    names = imatrix.measured(architecture.tensors(config))
    samples = measuring.calibration(others, tokenizer, template, max_tokens=3000)
    sums = measuring.collect(smollm2, samples, names, Tally())
    imatrix.write(imatrix.from_measured(sums, dataset="chatterbot-corpus"), tmp_path / "imatrix.gguf")
    matrix = imatrix.read(tmp_path / "imatrix.gguf")
    matrix.require_fit((tensor.gguf, tensor.shape) for tensor in architecture.tensors(config))

    model = loading.load_model(smollm2)
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    reference = divergence.remember(model, held_out, folder=tmp_path, saved_as=smollm2)
    shape = ModelShape("llama", config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, tied=True)

    def distance(kind: str, guide: Imatrix | None) -> float:
        tensors = architecture.tensors(config)
        known = guide.names if guide else frozenset()
        choices = assign(file_type(kind), [(tensor.gguf, tensor.shape) for tensor in tensors], shape, imatrix=known)
        for tensor, choice in zip(tensors, choices, strict=True):
            if re.match(r"blk\.\d*5\.", tensor.gguf) and len(tensor.shape) == 2:  # one layer in ten: seconds, not minutes
                rows = weights[tensor.hf].numpy()
                encoded = encode_rows(rows, choice.type, guide.importance(tensor.gguf) if guide else None)
                model.get_parameter(tensor.hf).data = torch.from_numpy(gguf.dequantize(encoded, choice.type).copy())
        model.tie_weights()
        return divergence.measure(model, reference).mean

    gains = {kind: (distance(kind, None), distance(kind, matrix)) for kind in ("q4_k_m", "iq4_xs", "q2_k")}
    print(gains)
    assert all(guided < 0.85 * plain for plain, guided in gains.values()), gains
