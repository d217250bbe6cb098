"""What a model needs to speak: weights, keys and values, and what passes through. Knows runtimes' habits; nothing of devices.

The runtimes are llmkit's own two: transformers for bf16 and bitsandbytes, llama.cpp for GGUF.
"""

from llmkit.planning import weights
from llmkit.planning.peaks import Peak
from llmkit.planning.shapes import Shape

SINGLE = ("fp32", "bf16")
BITSANDBYTES = ("int8", "nf4", "fp4", "nf4-dq", "fp4-dq")
LOGITS = 4  # vocabulary-wide float32 rows alive at once, as engine/room has it
_HALF = 2  # bytes of a cached number: f16 in llama.cpp, bf16 in transformers
_CELLS = 256  # llama.cpp's cache grows by so many tokens
_PIECE = 512  # tokens that llama.cpp works on at once, and keeps beyond a window
_TORCH, _LLAMA = 600_000_000, 100_000_000  # a process and its device context
# Families whose sliding window llama.cpp keeps a smaller cache for; it ignores that of others.
_WINDOWED = ("gemma2", "gemma3")


def need(shape: Shape, precision: str, *, context: int) -> Peak:
    """Memory for one conversation of `context` tokens, in bytes.

    Raises:
        UsageError: a GGUF type that does not exist.
    """
    size = weights.size(shape, precision)
    if precision in SINGLE or precision in BITSANDBYTES:
        parts = {"weights": size, "KV cache": cache(shape, context), "activations": _torch_working(shape, context)}
        return Peak("answering", {**parts, "runtime": _TORCH})
    llama = shape.family in _WINDOWED
    cells = cache(shape, -(-context // _CELLS) * _CELLS, beyond=_PIECE, windowed=llama)
    return Peak(
        "answering", {"weights": size, "KV cache": cells, "activations": _llama_working(shape, context), "runtime": _LLAMA}
    )


def cache(shape: Shape, tokens: int, *, beyond: int = 0, windowed: bool = True, width: int = _HALF) -> int:
    """Bytes of keys and values of `tokens`; a layer with a window keeps no more than that, and `beyond`."""
    kept = (min(tokens, window + beyond) if window and windowed else tokens for window in shape.windows)
    return 2 * width * shape.key * sum(kept)


def passing(shape: Shape, tokens: int, *, width: int) -> int:
    """Bytes alive while a prompt goes through one layer; see engine/room, where it was measured."""
    return width * tokens * (6 * shape.hidden + 4 * shape.query + 3 * shape.feed_forward)


def _torch_working(shape: Shape, tokens: int) -> int:
    scores = 8 * shape.heads * tokens * tokens if shape.softcap else 0  # written out: a soft cap has no fused kernel
    return passing(shape, tokens, width=_HALF) + scores + 4 * LOGITS * shape.vocabulary


def _llama_working(shape: Shape, tokens: int) -> int:
    """Its graph is measured for a whole piece whose tokens all ask for logits."""
    piece = min(_PIECE, tokens)
    return 4 * piece * (shape.vocabulary + 2 * shape.feed_forward + 2 * shape.query + 4 * shape.hidden)
