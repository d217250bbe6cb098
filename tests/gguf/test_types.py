"""The choice of types is llama.cpp's; `test_encode` holds its choices for whole models, this the rules that matter to read."""

import pytest
from gguf import GGMLQuantizationType, LlamaFileType
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import UsageError
from llmkit.gguf.types import NEEDS_IMPORTANCE, TYPES, Choice, ModelShape, assign, file_type

Q = GGMLQuantizationType
LLAMA = ModelShape("llama", 16, 8, 4, tied=False)
TIED = ModelShape("gemma3", 18, 4, 1, tied=True)


def _choose(kind: str, name: str, shape: tuple[int, ...] = (64, 256), model: ModelShape = LLAMA) -> Choice:
    [choice] = assign(file_type(kind), [(name, shape)], model, imatrix=[name])
    return choice


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("name", "shape"), [("blk.0.attn_norm.weight", (256,)), ("blk.0.attn_q.bias", (256,)), ("rope_freqs.weight", (32,))]
)
def test_norms_biases_and_vectors_stay_in_full_precision(kind: str, name: str, shape: tuple[int, ...]) -> None:
    assert _choose(kind, name, shape) == Choice(Q.F32, fell_back=False)


def test_the_first_and_last_eighth_and_every_third_layer_between_get_more_bits() -> None:
    more = [layer for layer in range(16) if _choose("q4_k_m", f"blk.{layer}.attn_v.weight").type is Q.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert all(_choose("q4_k_m", f"blk.{layer}.attn_q.weight").type is Q.Q4_K for layer in range(16))


@pytest.mark.parametrize(
    ("kind", "name", "columns", "expected"),
    [
        ("q4_k_m", "blk.8.attn_q.weight", 576, Choice(Q.Q5_0, fell_back=True)),
        ("q5_k_m", "blk.8.attn_q.weight", 576, Choice(Q.Q5_1, fell_back=True)),
        ("q4_k_m", "blk.0.attn_v.weight", 576, Choice(Q.Q8_0, fell_back=True)),
        ("q2_k", "blk.8.attn_q.weight", 576, Choice(Q.Q4_0, fell_back=True)),
        ("iq1_m", "blk.8.attn_q.weight", 576, Choice(Q.IQ4_NL, fell_back=True)),
        ("q4_k_m", "blk.8.attn_q.weight", 48, Choice(Q.F16, fell_back=True)),
        ("q8_0", "blk.8.attn_q.weight", 48, Choice(Q.F16, fell_back=True)),
        ("bf16", "blk.8.attn_q.weight", 48, Choice(Q.BF16, fell_back=False)),
        ("q4_k_m", "output.weight", 576, Choice(Q.Q8_0, fell_back=False)),
        ("q4_k_m", "output.weight", 256, Choice(Q.Q6_K, fell_back=False)),
        ("iq2_xs", "output.weight", 256, Choice(Q.Q5_K, fell_back=False)),
        ("q4_0", "output.weight", 256, Choice(Q.Q6_K, fell_back=False)),
        ("q4_0", "output.weight", 576, Choice(Q.Q8_0, fell_back=True)),
        ("q8_0", "output.weight", 256, Choice(Q.Q8_0, fell_back=False)),
    ],
)
def test_a_row_that_fits_no_block_falls_back(kind: str, name: str, columns: int, expected: Choice) -> None:
    assert _choose(kind, name, (64, columns)) == expected


def test_a_tied_embedding_is_kept_as_well_as_an_output() -> None:
    assert _choose("q4_k_m", "token_embd.weight", model=TIED).type is Q.Q6_K
    assert _choose("q4_k_m", "token_embd.weight", model=LLAMA).type is Q.Q4_K


def test_heads_that_share_and_models_of_eighty_layers_get_a_better_attn_v() -> None:
    def value(kind: str, architecture: str, layers: int, heads: int, shared: int) -> Q:
        return _choose(kind, "blk.30.attn_v.weight", model=ModelShape(architecture, layers, heads, shared, False)).type

    assert value("q2_k", "llama", 40, 8, 4) is Q.Q3_K
    assert value("q2_k", "llama", 40, 8, 2) is Q.Q4_K
    assert value("q2_k", "llama", 80, 8, 1) is Q.Q5_K
    assert value("q3_k_s", "llama", 80, 8, 8) is Q.Q3_K  # 65B
    assert value("q3_k_s", "qwen2", 80, 8, 8) is Q.Q5_K
    assert value("iq2_xs", "llama", 80, 8, 1) is Q.Q4_K


def test_an_importance_matrix_changes_what_the_first_layers_get() -> None:
    tensors = [(f"blk.{layer}.ffn_down.weight", (64, 256)) for layer in range(16)]

    def types(kind: str, *, guided: bool) -> list[Q]:
        return [choice.type for choice in assign(file_type(kind), tensors, LLAMA, imatrix=["other"] if guided else ())]

    assert types("q4_0", guided=True) == [Q.Q4_1] * 2 + [Q.Q4_0] * 14
    assert types("q4_0", guided=False) == [Q.Q4_0] * 16
    assert types("iq4_xs", guided=True) == [Q.IQ4_XS] * 16
    assert types("iq4_xs", guided=False) == [Q.Q5_K] * 2 + [Q.IQ4_XS] * 14


@pytest.mark.parametrize("kind", ["iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"])
def test_a_type_that_needs_an_importance_matrix_says_so(kind: str) -> None:
    tensors = [("token_embd.weight", (64, 256)), ("blk.7.ffn_up.weight", (64, 256))]
    with pytest.raises(UsageError, match=f"{kind} needs an importance matrix, and there is none") as caught:
        assign(file_type(kind), tensors, LLAMA)
    assert "iq3_s" in caught.value.next
    with pytest.raises(UsageError, match=r"the importance matrix lacks blk\.7\.ffn_up\.weight"):
        assign(file_type(kind), tensors, LLAMA, imatrix=["blk.6.ffn_up.weight"])
    assert assign(file_type(kind), tensors, LLAMA, imatrix=["blk.7.ffn_up.weight"])[1].type in NEEDS_IMPORTANCE


@given(st.sampled_from(sorted(TYPES)), st.permutations(range(12)), st.sampled_from(["llama", "qwen2", "phi3"]))
def test_the_order_of_the_tensors_changes_nothing(kind: str, order: list[int], architecture: str) -> None:
    model = ModelShape(architecture, 12, 8, 2, tied=False)
    tensors = [(f"blk.{layer}.{role}.weight", (64, 256)) for role in ("attn_v", "ffn_down") for layer in order]
    names = [name for name, _ in tensors]
    chosen = dict(zip(names, assign(file_type(kind), tensors, model, imatrix=names), strict=True))
    assert assign(file_type(kind), sorted(tensors), model, imatrix=names) == [chosen[name] for name in sorted(names)]


def test_every_file_type_has_llama_cpp_s_number() -> None:
    assert file_type("f32").code is LlamaFileType.ALL_F32
    assert file_type("q3_k_m").code is LlamaFileType.MOSTLY_Q3_K_M
    assert len({entry.code for entry in TYPES.values()}) == len(TYPES)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no GGUF type 'q4'") as caught:
        file_type("q4")
    assert "q4_k_m" in caught.value.next
