"""The choice of types is llama.cpp's."""

import pytest
from gguf import GGMLQuantizationType

from llmkit.gguf.types import Mixture, file_type

Q = GGMLQuantizationType


def _choose(kind: str, name: str, shape: tuple[int, ...], *, layers: int = 16, tied: bool = False) -> tuple[Q, bool]:
    return Mixture(file_type(kind), layers, tied, grouped=True).choose(name, shape)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k_m", "q5_k_m", "f16", "bf16"])
@pytest.mark.parametrize(
    ("name", "shape"), [("blk.0.attn_norm.weight", (256,)), ("blk.0.attn_q.bias", (256,)), ("rope_freqs.weight", (32,))]
)
def test_norms_biases_and_vectors_stay_in_full_precision(kind: str, name: str, shape: tuple[int, ...]) -> None:
    assert _choose(kind, name, shape) == (Q.F32, False)


def test_the_first_and_last_eighth_and_every_third_layer_between_get_more_bits() -> None:
    more = [layer for layer in range(16) if _choose("q4_k_m", f"blk.{layer}.attn_v.weight", (256, 256))[0] is Q.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert all(_choose("q4_k_m", f"blk.{layer}.attn_q.weight", (256, 256))[0] is Q.Q4_K for layer in range(16))


@pytest.mark.parametrize(
    ("kind", "name", "columns", "expected"),
    [
        ("q4_k_m", "blk.8.attn_q.weight", 576, (Q.Q5_0, True)),
        ("q5_k_m", "blk.8.attn_q.weight", 576, (Q.Q5_1, True)),
        ("q4_k_m", "blk.0.attn_v.weight", 576, (Q.Q8_0, True)),
        ("q4_k_m", "blk.8.attn_q.weight", 48, (Q.F16, True)),
        ("q8_0", "blk.8.attn_q.weight", 48, (Q.F16, True)),
        ("q4_k_m", "output.weight", 576, (Q.Q8_0, False)),
        ("q4_k_m", "output.weight", 256, (Q.Q6_K, False)),
        ("q4_0", "output.weight", 256, (Q.Q6_K, False)),
        ("q8_0", "output.weight", 256, (Q.Q8_0, False)),
    ],
)
def test_a_row_that_fits_no_block_falls_back(kind: str, name: str, columns: int, expected: tuple[Q, bool]) -> None:
    assert _choose(kind, name, (64, columns)) == expected


def test_a_tied_embedding_is_kept_as_well_as_an_output() -> None:
    assert _choose("q4_k_m", "token_embd.weight", (64, 256), tied=True)[0] is Q.Q6_K
    assert _choose("q4_k_m", "token_embd.weight", (64, 256), tied=False)[0] is Q.Q4_K
