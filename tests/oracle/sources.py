"""Small made-up models for the quantizer: the same numbers on every machine, layers enough for every rule of the mixtures.

The quantizer reads a file's tensors by name and a few keys; whether a model of these shapes could run, it does not ask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llmkit.gguf.types import ModelShape

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Source:
    """`tensors` float32 by GGUF name, `importance` (float32, one value a column) of some of them."""

    model: ModelShape
    tensors: Tensors
    importance: Tensors

    def write(self, path: Path) -> Path:
        """A GGUF file of these tensors in f32, with what `llama-quantize` asks for."""
        writer = gguf.GGUFWriter(path, self.model.architecture)
        writer.add_context_length(64)
        writer.add_embedding_length(256)
        writer.add_feed_forward_length(512)
        writer.add_block_count(self.model.layers)
        writer.add_head_count(self.model.heads)
        writer.add_head_count_kv(self.model.key_value_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def digest(tensors: dict[str, tuple[str, Array]]) -> str:
    """One name for types and bytes: GGUF name → (GGML type, data)."""
    whole = sha256()
    for name in sorted(tensors):
        kind, data = tensors[name]
        whole.update(f"{name} {kind}\n".encode())
        whole.update(np.ascontiguousarray(data).view(np.uint8))
    return whole.hexdigest()[:32]


def _llama() -> Source:
    """Grouped heads, untied; the embedding has no importance, as in files that llama.cpp collected."""
    source = _source(ModelShape("llama", 16, 8, 2, tied=False), dict.fromkeys(_SEPARATE, 256))
    return _without(source, "token_embd.weight")


def _gemma() -> Source:
    """Tied, ungrouped, with rows that force the fallbacks to blocks of 32 and to f16, and one gap in the importance."""
    widths = dict.fromkeys(_SEPARATE, 576) | {"ffn_down": 512, "attn_k": 48, "attn_output": 256}
    return _without(_source(ModelShape("gemma3", 18, 4, 4, tied=True), widths), "blk.3.attn_q.weight")


def _phi() -> Source:
    """Fused projections; the head has an importance too."""
    widths = {"token_embd": 256, "output": 256, "attn_qkv": 256, "attn_output": 256, "ffn_up": 256, "ffn_down": 512}
    return _source(ModelShape("phi3", 8, 6, 2, tied=False), widths)


def _seventy(architecture: str, key_value_heads: int) -> Source:
    """Eighty layers, of which the mixtures treat `attn_v` apart."""
    return _source(
        ModelShape(architecture, 80, 16, key_value_heads, tied=False),
        {"token_embd": 256, "output": 256, "attn_v": 256, "ffn_down": 256},
    )


_SEPARATE = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
SOURCES: dict[str, Callable[[], Source]] = {
    "llama": _llama,
    "gemma3": _gemma,
    "phi3": _phi,
    "llama-70b": lambda: _seventy("llama", 2),
    "llama-65b": lambda: _seventy("llama", 16),
    "qwen2-80": lambda: _seventy("qwen2", 16),
}


def _source(model: ModelShape, widths: dict[str, int]) -> Source:
    tensors: Tensors = {}
    importance: Tensors = {}
    for number, (name, width) in enumerate(_names(model, widths)):
        random = np.random.RandomState(number)  # its stream is frozen
        tensors[name] = _weights(random, 2, width)
        importance[name] = _positive(random, width)
    tensors["output_norm.weight"] = tensors["token_embd.weight"][0].copy()
    tensors["blk.0.attn_norm.weight"] = tensors["token_embd.weight"][1].copy()
    return Source(model, tensors, importance)


def _without(source: Source, name: str) -> Source:
    return replace(source, importance={key: row for key, row in source.importance.items() if key != name})


def _names(model: ModelShape, widths: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Layers as text sorts them, so that a quantizer's order by layer matters."""
    for role, width in widths.items():
        if role in ("token_embd", "output"):
            if role != "output" or not model.tied:
                yield f"{role}.weight", width
        else:
            for layer in sorted(range(model.layers), key=str):
                yield f"blk.{layer}.{role}.weight", width


def _weights(random: np.random.RandomState, rows: int, width: int) -> Array:
    """Bell-shaped with long tails, a run of zeros, one outlier; sums and products of small integers are exact everywhere."""
    bell = random.randint(-64, 65, (3, rows, width)).sum(axis=0)
    values = (bell * random.randint(1, 9, (rows, width))).astype(np.float32) / np.float32(1 << 14)
    values[0, 32:64] = 0
    values[-1, width // 2] *= 16
    return values


def _positive(random: np.random.RandomState, width: int) -> Array:
    values = random.randint(1, 256, (2, width)).prod(axis=0).astype(np.float32) / np.float32(1 << 10)
    values[:3] = 0  # inputs that never were anything
    return values
