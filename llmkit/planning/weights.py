"""Bytes of a model's weights in each precision, tensor by tensor. Knows the formats' layouts; nothing of devices.

safetensors headers, GGUF keys and vocabularies are not weights, and are left out; they are a few megabytes.
"""

from collections.abc import Callable, Collection
from math import ceil, prod

from gguf import GGML_QUANT_SIZES

from llmkit.gguf import types
from llmkit.gguf.header import aligned
from llmkit.planning.shapes import Shape, Tensor

_SINGLE = {"fp32": 4, "bf16": 2}
_BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit types
_NESTED = 256  # scales that share one, under double quantization
_MAP = 16 * 4  # the 16 values of a 4-bit type, float32, saved beside each layer
_NESTED_MAP = 256 * 4
# The type that a GGUF's importance matrix must be made for cannot be chosen without one.
PRECISIONS = ("fp32", "bf16", "int8", "nf4", "nf4-dq")


def size(shape: Shape, precision: str, *, skip: Collection[str] = ()) -> int:
    """Bytes of all weights.

    Args:
        precision: fp32, bf16, int8 (LLM.int8), nf4 or fp4, nf4-dq or fp4-dq (double quantization), or a GGUF type.
        skip: for bitsandbytes: modules left in bf16, by name or by the end of it.

    Raises:
        UsageError: a GGUF type that does not exist.
    """
    if precision in _SINGLE:
        return _SINGLE[precision] * shape.parameters
    if precision in _QUANTIZED:
        return sum(_QUANTIZED[precision](one) if is_quantized(one, skip) else 2 * one.elements for one in shape.tensors)
    return gguf_size(shape, precision)


def gguf_size(shape: Shape, kind: str, *, imatrix: bool | None = None) -> int:
    """Bytes of the tensors of the GGUF file, each padded to the format's alignment.

    Args:
        imatrix: whether there is an importance matrix; None: where the type needs one.

    Raises:
        UsageError: no such type, or it needs a matrix.
    """
    named = [(one.gguf, one.shape) for one in shape.tensors] + list(shape.computed)
    model = types.ModelShape(shape.family, shape.layers, shape.heads, shape.key_value_heads, shape.tied)
    chosen = types.file_type(kind)
    guided = chosen.base in types.NEEDS_IMPORTANCE if imatrix is None else imatrix
    found = types.assign(chosen, named, model, imatrix={name for name, _ in named} if guided else ())
    return sum(aligned(_encoded(one, choice)) for (_, one), choice in zip(named, found, strict=True))


def is_quantized(tensor: Tensor, skip: Collection[str] = ()) -> bool:
    """Whether bitsandbytes puts it in 4 or 8 bits: the weight of a linear layer, neither the head nor to be skipped."""
    return tensor.kind == "linear" and not any(f".{name}." in f".{tensor.name}." for name in skip)


def four_bits(tensor: Tensor, *, double: bool) -> int:
    """Two weights a byte, a float32 scale for each 64; doubled: a byte for each, and a float32 for 256 of them."""
    blocks = ceil(tensor.elements / _BLOCK)
    scales = blocks + 4 * ceil(blocks / _NESTED) + _NESTED_MAP if double else 4 * blocks
    return ceil(tensor.elements / 2) + scales + _MAP


def _eight_bits(tensor: Tensor) -> int:
    """A byte a weight, a float32 scale a row, and a byte that names the layout."""
    return tensor.elements + 4 * prod(tensor.shape[:-1]) + 1


_QUANTIZED: dict[str, Callable[[Tensor], int]] = {
    "int8": _eight_bits,
    **{kind: lambda tensor: four_bits(tensor, double=False) for kind in ("nf4", "fp4")},
    **{f"{kind}-dq": lambda tensor: four_bits(tensor, double=True) for kind in ("nf4", "fp4")},
}


def _encoded(shape: tuple[int, ...], choice: types.Choice) -> int:
    numbers, length = GGML_QUANT_SIZES[choice.type]
    return prod(shape[:-1]) * (shape[-1] // int(numbers) * int(length))
