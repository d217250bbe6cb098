"""Bytes of weights, against the files that really are written."""

from pathlib import Path

import gguf
import pytest
from safetensors import safe_open

from llmkit.gguf import convert
from llmkit.gguf.types import NEEDS_IMPORTANCE, TYPES
from llmkit.planning import config, shapes, weights
from llmkit.planning.shapes import Shape
from tests.gguf import families
from tests.planning.shared import COPIES, shape_of

MADE = ("llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3_long")
WRITTEN = ("f32", "bf16", "q8_0", "q5_k_m", "q4_k_m", "iq4_xs")


@pytest.fixture(scope="module", params=MADE)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = getattr(families, request.param)(tmp_path_factory.mktemp(request.param))
    return folder


def test_a_saved_model_holds_as_many_bytes_as_planned(saved: Path) -> None:
    assert held(saved) in (weights.size(planned(saved), "fp32"), weights.size(planned(saved), "bf16"))


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_gguf_holds_as_many_bytes_as_planned(saved: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "model.gguf"
    convert.export(saved, out, type=kind, template="", name="tiny")
    start = gguf.GGUFReader(out).data_offset
    assert out.stat().st_size - start == weights.gguf_size(planned(saved), kind)


@pytest.mark.parametrize("precision", ["int8", "nf4", "nf4-dq"])
def test_a_bitsandbytes_checkpoint_holds_as_many_bytes_as_planned(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    from llmkit.engine import quantize

    bits = 8 if precision == "int8" else 4
    quantize.quantize(tiny_model, tmp_path, quantize.Settings(bits, double_quant=precision.endswith("dq")))  # type: ignore[arg-type]
    layers = sum(one.kind == "linear" for one in planned(tiny_model).tensors)
    # Each 4-bit layer also keeps a few words of how it was made.
    assert 0 <= held(tmp_path) - weights.size(planned(tiny_model), precision) <= (200 * layers if bits == 4 else 0)


@pytest.mark.parametrize("name", COPIES)
def test_every_type_has_a_size_and_more_bits_make_a_larger_file(name: str) -> None:
    shape = shape_of(name)
    sizes = {kind: weights.size(shape, kind) for kind in TYPES}
    assert sizes["f32"] > sizes["bf16"] > sizes["q8_0"] > sizes["q6_k"] > sizes["q5_k_m"] > sizes["q4_k_m"] > sizes["q2_k"]
    assert (
        weights.size(shape, "bf16") > weights.size(shape, "int8") > weights.size(shape, "nf4") > weights.size(shape, "nf4-dq")
    )
    assert all(sizes[kind] > 0 for kind in TYPES if TYPES[kind].base in NEEDS_IMPORTANCE)


def planned(folder: Path) -> Shape:
    return shapes.of_config(config.find(str(folder)).raw, where=str(folder))


def held(folder: Path) -> int:
    """Bytes of all tensors of a folder's safetensors, headers left out."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            total += sum(one.nbytes for one in (stream.get_tensor(name) for name in stream.keys()))  # noqa: SIM118 - no mapping
    return total
