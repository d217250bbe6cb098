"""GGUF files laid down byte by byte, right or wrong, and a model small enough to be damaged thousands of times."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

Array = np.ndarray[Any, Any]
_PLAIN = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
_PLAIN |= {"f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
_ARRAY = 9


@dataclass(frozen=True)
class Value:
    """A value and its GGUF type: `Value("u32", 3)`, `Value("[str]", ["a"])`, `Value("[[u8]]", [[1], [2]])`."""

    type: str
    value: Any


@dataclass(frozen=True)
class Tensor:
    """`offset` None: right behind the one before, aligned."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


def write(
    path: Path, keys: Sequence[tuple[str, Value]], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32
) -> Path:
    """Nothing is checked: keys may repeat, shapes and offsets may lie."""
    head = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(keys))]
    for key, value in keys:
        number, payload = _encode(value)
        head += [_string(key), struct.pack("<I", number), payload]
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        head += [_string(tensor.name), struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))]
        head.append(struct.pack("<IQ", tensor.type, offset))
        data += tensor.data + b"\0" * (-len(tensor.data) % alignment)
    header = b"".join(head)
    path.write_bytes(header + b"\0" * (-len(header) % alignment) + data)
    return path


def f32(name: str, array: Array) -> Tensor:
    return Tensor(name, array.shape, GGMLQuantizationType.F32, array.astype("<f4").tobytes())


def random_of(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int = 0) -> Tensor:
    """A tensor of random bytes, which a quantized type decodes to something."""
    size = int(np.prod(quant_shape_to_byte_shape(shape, kind)))
    return Tensor(name, shape, kind, np.random.default_rng(seed).bytes(size))


_SPECIAL = ["<unk>", "<s>", "</s>"]
_PIECES = ["▁", "a", "b", "c", "ab", "▁a", "bc", "▁ab", "你", "好", "你好"]
_HIDDEN, _FEED_FORWARD, _HEADS, _KEY_HEADS = 16, 32, 4, 2


def tiny_keys() -> dict[str, Value]:
    """The metadata of a one-layer Llama with SentencePiece's 270 tokens."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    types = [2, 3, 3, *[6] * 256, *[1] * len(_PIECES)]
    own = {
        "context_length": Value("u32", 128),
        "embedding_length": Value("u32", _HIDDEN),
        "block_count": Value("u32", 1),
        "feed_forward_length": Value("u32", _FEED_FORWARD),
        "attention.head_count": Value("u32", _HEADS),
        "attention.head_count_kv": Value("u32", _KEY_HEADS),
        "attention.layer_norm_rms_epsilon": Value("f32", 1e-5),
        "rope.freq_base": Value("f32", 10000.0),
    }
    return {
        "general.architecture": Value("str", "llama"),
        "general.name": Value("str", "tiny"),
        **{f"llama.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": Value("str", "llama"),
        "tokenizer.ggml.tokens": Value("[str]", tokens),
        "tokenizer.ggml.scores": Value("[f32]", [-float(index) for index in range(len(tokens))]),
        "tokenizer.ggml.token_type": Value("[i32]", types),
        "tokenizer.ggml.bos_token_id": Value("u32", 1),
        "tokenizer.ggml.eos_token_id": Value("u32", 2),
        "tokenizer.chat_template": Value("str", "{{ messages[0]['content'] }}"),
    }


def tiny_tensors() -> list[Tensor]:
    generator = np.random.default_rng(0)

    def random(name: str, *shape: int) -> Tensor:
        return f32(name, generator.standard_normal(shape, np.float32))

    keys = _KEY_HEADS * _HIDDEN // _HEADS
    rows = len(tiny_keys()["tokenizer.ggml.tokens"].value)
    return [
        random("token_embd.weight", rows, _HIDDEN),
        random("blk.0.attn_norm.weight", _HIDDEN),
        random("blk.0.attn_q.weight", _HIDDEN, _HIDDEN),
        random("blk.0.attn_k.weight", keys, _HIDDEN),
        random("blk.0.attn_v.weight", keys, _HIDDEN),
        random("blk.0.attn_output.weight", _HIDDEN, _HIDDEN),
        random("blk.0.ffn_norm.weight", _HIDDEN),
        random("blk.0.ffn_gate.weight", _FEED_FORWARD, _HIDDEN),
        random("blk.0.ffn_up.weight", _FEED_FORWARD, _HIDDEN),
        random("blk.0.ffn_down.weight", _HIDDEN, _FEED_FORWARD),
        random("output_norm.weight", _HIDDEN),
    ]


def tiny(path: Path, *, change: Mapping[str, Value | None] | None = None, tensors: Sequence[Tensor] | None = None) -> Path:
    """The tiny model; `change` sets keys, or leaves them out (None)."""
    keys = {**tiny_keys(), **(change or {})}
    kept = [(key, value) for key, value in keys.items() if value is not None]
    return write(path, kept, tiny_tensors() if tensors is None else tensors)


def _encode(value: Value) -> tuple[int, bytes]:
    """GGUF's number of the type, and the payload behind it."""
    if value.type.startswith("["):
        inner = value.type[1:-1]
        parts = [_encode(Value(inner, item)) for item in value.value]
        number = (
            parts[0][0] if parts else _encode(Value(inner, [] if inner.startswith("[") else "" if inner == "str" else 0))[0]
        )
        return _ARRAY, struct.pack("<IQ", number, len(parts)) + b"".join(payload for _, payload in parts)
    if value.type == "str":
        return 8, _string(value.value)
    number, code = _PLAIN[value.type]
    return number, struct.pack(f"<{code}", value.value)


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw
