"""Files are the same whoever writes their parts, and whole or not there at all."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmkit.errors import DataError, MachineError
from llmkit.gguf import convert, writing
from llmkit.gguf.convert import export, export_types
from llmkit.gguf.weights import header
from llmkit.gguf.writing import Piece, Source

KINDS = ("f32", "bf16", "q8_0", "q4_k_m")


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models too are written by a pool, in many pieces."""
    monkeypatch.setattr(writing, "SMALL_ELEMENTS", 0)
    monkeypatch.setattr(writing, "PIECE_ELEMENTS", 1 << 14)


@pytest.mark.usefixtures("pooled")
def test_two_processes_and_several_types_at_once_write_the_bytes_of_one(mistral_dir: Path, tmp_path: Path) -> None:
    export_types(mistral_dir, {kind: tmp_path / f"{kind}.gguf" for kind in KINDS}, template="", name="x", workers=2)
    for kind in KINDS:
        export(mistral_dir, tmp_path / "one.gguf", type=kind, template="", name="x", workers=1)
        assert (tmp_path / f"{kind}.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


@given(
    heads=st.integers(1, 4), half=st.integers(1, 8), width=st.integers(1, 40), rows=st.integers(1, 9), block=st.integers(1, 200)
)
@settings(deadline=None, max_examples=60)
def test_rows_in_any_order_arrive_in_pieces_and_blocks_of_any_size(
    heads: int, half: int, width: int, rows: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    weight = torch.arange(heads * 2 * half * width, dtype=torch.float32).reshape(-1, width)
    save_file({"w": weight}, folder / "w.safetensors")
    order = np.arange(len(weight)).reshape(heads, 2, half).swapaxes(1, 2).reshape(-1)
    source = Source("w", header(folder / "w.safetensors")["w"], order, ())
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_BLOCK_ELEMENTS", block)
        files = writing.Files()
        for first in range(0, len(weight), rows):
            piece = Piece(source, first, min(first + rows, len(weight)))
            found += [part for _, part in writing.blocks(piece, files)]
        files.close()
    np.testing.assert_array_equal(np.concatenate(found), weight.numpy()[order])


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_and_no_file_stays(value: float, mistral_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(mistral_dir, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj"):
        export_types(model, {kind: tmp_path / f"{kind}.gguf" for kind in KINDS}, template="", name="x", workers=2)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_stored_in_any_float_type_are_read_as_torch_reads_them(
    dtype: torch.dtype, mistral_dir: Path, tmp_path: Path, read: Callable[[Path], dict[str, Any]]
) -> None:
    model = Path(shutil.copytree(mistral_dir, tmp_path / "model"))
    weights = {name: weight.to(dtype) for name, weight in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    export(model, tmp_path / "x.gguf", type="f32", template="", name="x")
    found = read(tmp_path / "x.gguf")
    np.testing.assert_array_equal(found["output.weight"], weights["lm_head.weight"].float().numpy())
    np.testing.assert_array_equal(found["output_norm.weight"], weights["model.norm.weight"].float().numpy())


@pytest.fixture
def read() -> Callable[[Path], dict[str, Any]]:
    def tensors(path: Path) -> dict[str, Any]:
        return {one.name: gguf.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}

    return tensors


def test_shards_hold_together_what_one_file_holds(mistral_dir: Path, tmp_path: Path, read: Callable[[Path], Any]) -> None:
    export(mistral_dir, tmp_path / "one.gguf", type="q8_0", template="", name="x")
    facts = export(mistral_dir, tmp_path / "many.gguf", type="q8_0", template="", name="x", max_shard_bytes=300_000)
    assert not (tmp_path / "many.gguf").exists()
    assert len(facts["files"]) > 2
    whole, parts = read(tmp_path / "one.gguf"), [read(tmp_path / name) for name in facts["files"]]
    assert sum(len(part) for part in parts) == len(whole)
    for part in parts:
        for name, weight in part.items():
            np.testing.assert_array_equal(weight, whole[name])
    for index, name in enumerate(facts["files"]):
        fields = gguf.GGUFReader(tmp_path / name).fields
        assert name == f"many-{index + 1:05}-of-{len(parts):05}.gguf"
        assert (fields["split.no"].contents(), fields["split.count"].contents()) == (index, len(parts))
        assert fields["split.tensors.count"].contents() == len(whole)
    assert sum((tmp_path / name).stat().st_size for name in facts["files"]) == facts["bytes"]


def test_llama_cpp_loads_shards(mistral_dir: Path, tmp_path: Path) -> None:
    from llmkit.gguf.runtime import LlamaServer

    export(mistral_dir, tmp_path / "one.gguf", type="q8_0", template="", name="x")
    facts = export(mistral_dir, tmp_path / "many.gguf", type="q8_0", template="", name="x", max_shard_bytes=300_000)
    answers = []
    for name in ("one.gguf", facts["files"][0]):
        with LlamaServer(tmp_path / name, threads=2, context=64) as server:
            answers.append(server.next_log_probabilities([1, 5, 9], top=20))
    assert answers[0] == answers[1]


def test_a_disk_without_room_is_told_before_anything_is_written(
    mistral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(MachineError, match="GB of disk"):
        export(mistral_dir, tmp_path / "x.gguf", type="f32", template="", name="x")
    assert not list(tmp_path.iterdir())


def test_the_size_is_known_before_anything_is_written(mistral_dir: Path, tmp_path: Path) -> None:
    model = convert.Model.read(mistral_dir)
    for kind in KINDS:
        facts = export(mistral_dir, tmp_path / "x.gguf", type=kind, template="", name="x")
        opening = facts["bytes"] - convert.size_of(model, kind)
        assert 0 < opening < 40_000
        assert facts["bytes"] == (tmp_path / "x.gguf").stat().st_size


def test_a_name_that_stands_twice_in_a_header_is_a_data_error(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    text = f'{{"w": {entry}, "w": {entry}}}'.encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(DataError, match="twice"):
        header(tmp_path / "w.safetensors")


_POOL = """
import sys
from pathlib import Path
from llmkit.gguf import writing
from llmkit.gguf.convert import export
if __name__ == "__main__":
    writing.SMALL_ELEMENTS, writing.PIECE_ELEMENTS = 0, 64  # minutes of work
    export(Path(sys.argv[1]), Path(sys.argv[2]), type="q4_k_m", template="", name="x", workers=2)
"""


def test_the_pool_of_a_killed_run_ends_with_it(mistral_dir: Path, tmp_path: Path) -> None:
    import psutil

    (tmp_path / "run.py").write_text(_POOL, "utf-8")
    command = [sys.executable, str(tmp_path / "run.py"), str(mistral_dir), str(tmp_path / "x.gguf")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment) as run:
        deadline = time.monotonic() + 60
        while len(pool := psutil.Process(run.pid).children(recursive=True)) < 3:  # two workers and the resource tracker
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.kill()
    _, left = psutil.wait_procs(pool, timeout=30)
    assert not left
