"""Rows of numbers → the bytes of a GGML type, as ggml itself writes them. Knows formats; nothing of tensors or files.

Two wheels hold ggml's quantizers. xllamacpp's, called through `ggml_quantize_chunk` of ggml.h, is the newer: it is faster (Q6_K
1.9 times, Q4_K 1.3) and lets go of the GIL. libgguf, which keeps it, stands in where xllamacpp's library exports nothing
(Windows). Their bytes are the same but for IQ1_M, whose search ggml has rewritten since: one byte of some ten thousand.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Array = np.ndarray[Any, Any]
_FASTER_IN_LIBGGUF = {GGMLQuantizationType.IQ4_NL, GGMLQuantizationType.IQ4_XS}  # 1.5 times


def encode(rows: Array, kind: GGMLQuantizationType, importance: Array | None = None) -> Array:
    """`rows`, float32 [n, width], as uint8 [n, bytes per row], bit-identical to ggml's `ggml_quantize_chunk`.

    `importance`, float32 [width], weighs the columns' errors (mean of the squared inputs); types without a use for it ignore
    it. The values must be finite and, for F16, within its range: nothing checks that here. A row's bytes depend on no other.
    A process's first use of a type builds its tables: IQ1_S and IQ1_M 9 s, IQ2_S 4 s, IQ2_XS 2 s, IQ2_XXS 1 s, others none.

    Raises:
        ValueError: `width` is no multiple of the type's block, or the type needs an importance and has none.
    """
    n, width = rows.shape
    block, size = GGML_QUANT_SIZES[kind]
    if width % block:
        raise ValueError(f"rows of {width} do not divide into {kind.name}'s blocks of {block}")
    if importance is None and libgguf.quantize_requires_imatrix(kind):
        raise ValueError(f"{kind.name} needs an importance matrix")  # ggml would abort
    if importance is not None and importance.shape != (width,):
        raise ValueError(f"importance of shape {importance.shape} for rows of {width}")
    encoded = np.empty((n, width // block * size), np.uint8)
    rows = np.ascontiguousarray(rows, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    ggml = None if kind in _FASTER_IN_LIBGGUF else _ggml()
    if ggml is None:
        libgguf.quantize_rows_into_raw(kind, rows, encoded, n, width, weights)
    else:
        weights_at = None if weights is None else weights.ctypes.data
        written = ggml(kind, rows.ctypes.data, encoded.ctypes.data, 0, n, width, weights_at)
        assert written == encoded.size
    return encoded


@cache
def _ggml() -> Any:
    """`ggml_quantize_chunk` of the library inside xllamacpp, which is not started; None where it exports nothing."""
    package = find_spec("xllamacpp")
    folders = (package.submodule_search_locations if package else None) or []
    for library in (path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))):
        function = getattr(ctypes.CDLL(str(library)), "ggml_quantize_chunk", None)
        if function is not None:
            function.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p)
            function.restype = ctypes.c_size_t
            return function
    return None
