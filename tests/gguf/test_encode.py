"""The bytes are llama.cpp's, as `make oracle` recorded them from its quantizer."""

import platform
from collections.abc import Collection

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmkit.errors import UsageError
from llmkit.gguf.encode import encode
from llmkit.gguf.types import TYPES, assign, file_type
from tests.oracle.record import REFUSED, recorded
from tests.oracle.sources import SOURCES, Source, digest

Q = GGMLQuantizationType
# A process builds large tables before it can encode the first row of these.
COSTLY = {"iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"}
ENCODINGS = sorted({entry.base for name, entry in TYPES.items() if name not in COSTLY})
x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="other processors fuse multiplications with additions: other last bits",
)


@x86
@pytest.mark.parametrize("name", SOURCES)
def test_types_and_bytes_are_those_of_llama_cpp_s_quantizer(name: str) -> None:
    _compare(name, TYPES.keys() - COSTLY)


@x86
@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_types_and_bytes_of_one_and_two_bits_are_llama_cpp_s_too(name: str) -> None:
    _compare(name, COSTLY)


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("guided", [False, True])
def test_both_libraries_write_the_same_bytes(kind: Q, guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(3).standard_t(3, size=(8, 512)).astype(np.float32)
    importance = rows[0] ** 2 if guided else None
    monkeypatch.setattr("llmkit.gguf.encode._FASTER_IN_LIBGGUF", set())
    ours = encode(rows, kind, importance)
    monkeypatch.setattr("llmkit.gguf.encode._ggml", lambda: None)
    np.testing.assert_array_equal(ours, encode(rows, kind, importance))


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_row_s_bytes_depend_on_no_other_row(kind: Q) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    importance = np.abs(rows[0])
    whole = encode(rows, kind, importance)
    assert whole.dtype == np.uint8
    assert whole.shape == gguf.quant_shape_to_byte_shape(rows.shape, kind)
    one_by_one = [encode(rows[number : number + 1], kind, importance)[0] for number in range(4)]
    np.testing.assert_array_equal(whole, one_by_one)
    np.testing.assert_array_equal(whole[::2], encode(rows[::2], kind, importance))


@given(arrays(np.float32, (3, 32), elements=st.floats(-65504, 65504, width=32)))
@settings(max_examples=200, deadline=None)
def test_half_precision_rounds_to_the_nearest_even(rows: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(encode(rows, Q.F16).view(np.uint16), rows.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(encode(rows, Q.F32).view(np.float32), rows)
    np.testing.assert_array_equal(encode(rows, Q.BF16), gguf.quantize(rows, Q.BF16))


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1])
def test_the_simple_types_agree_with_the_gguf_package(kind: Q) -> None:
    rows = np.random.default_rng(1).standard_t(3, size=(8, 256)).astype(np.float32)
    rows[0] = 0
    np.testing.assert_array_equal(encode(rows, kind), gguf.quantize(rows, kind))


def test_importance_moves_the_error_to_the_columns_that_matter_less() -> None:
    rows = np.random.default_rng(2).normal(size=(16, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 2, 100, 0.01).astype(np.float32)
    plain, weighed = (gguf.dequantize(encode(rows, Q.Q2_K, given), Q.Q2_K) - rows for given in (None, importance))
    assert np.abs(weighed[:, 1::2]).mean() < 0.8 * np.abs(plain[:, 1::2]).mean()


def test_what_cannot_be_encoded_is_said() -> None:
    rows = np.ones((2, 512), np.float32)
    with pytest.raises(ValueError, match="IQ2_XXS needs an importance matrix"):
        encode(rows, Q.IQ2_XXS)
    with pytest.raises(ValueError, match="blocks of 256"):
        encode(rows[:, :48], Q.Q4_K)
    with pytest.raises(ValueError, match="importance of shape"):
        encode(rows, Q.Q4_K, np.ones(256, np.float32))


def _compare(name: str, kinds: Collection[str]) -> None:
    source = SOURCES[name]()
    encoded: dict[tuple[str, Q, bool], np.ndarray] = {}  # most types share tensors
    ours = {kind: [_made(source, kind, encoded, guided=guided) for guided in (False, True)] for kind in kinds}
    assert ours == {kind: recorded()[name][kind] for kind in kinds}


def _made(source: Source, kind: str, encoded: dict[tuple[str, Q, bool], np.ndarray], *, guided: bool) -> str:
    """The digest of our file of this type, REFUSED where we would write none."""
    importance = source.importance if guided else {}
    listing = [(name, values.shape) for name, values in source.tensors.items()]
    try:
        choices = assign(file_type(kind), listing, source.model, imatrix=importance)
    except UsageError:
        return REFUSED
    tensors = {}
    for (name, shape), choice in zip(listing, choices, strict=True):
        key = (name, choice.type, name in importance)
        if key not in encoded:
            encoded[key] = encode(source.tensors[name].reshape(-1, shape[-1]), choice.type, importance.get(name))
        tensors[name] = (choice.type.name, encoded[key])
    return digest(tensors)
