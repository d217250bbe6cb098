"""Which GGML type each tensor of a file gets. Knows llama.cpp's mixtures; nothing of weights or files.

Follows `llama_tensor_get_type` in llama.cpp, so that a file made here holds what `llama-quantize` would have chosen.
"""

import re
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from llmkit.errors import UsageError

Q = GGMLQuantizationType


@dataclass(frozen=True)
class FileType:
    """One value of `export.type`. `embedding`: type of the matrix that makes the logits; `more`: of the sensitive tensors."""

    name: str
    base: GGMLQuantizationType
    code: LlamaFileType
    embedding: GGMLQuantizationType
    more: GGMLQuantizationType | None = None


TYPES = {
    entry.name: entry
    for entry in (
        FileType("f32", Q.F32, LlamaFileType.ALL_F32, Q.F32),
        FileType("f16", Q.F16, LlamaFileType.MOSTLY_F16, Q.F16),
        FileType("bf16", Q.BF16, LlamaFileType.MOSTLY_BF16, Q.BF16),
        FileType("q8_0", Q.Q8_0, LlamaFileType.MOSTLY_Q8_0, Q.Q8_0),
        FileType("q4_0", Q.Q4_0, LlamaFileType.MOSTLY_Q4_0, Q.Q6_K),
        FileType("q5_k_m", Q.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, Q.Q6_K, more=Q.Q6_K),
        FileType("q4_k_m", Q.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, Q.Q6_K, more=Q.Q6_K),
    )
}

# What stands in where a row does not divide into the type's blocks of 256.
_FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
_SEVENTY_B_LAYERS = 80


def file_type(name: str) -> FileType:
    """Raises UsageError, naming the known types, for any other name."""
    if name not in TYPES:
        raise UsageError(f"no GGUF type {name!r}", next=f"known: {', '.join(TYPES)}")
    return TYPES[name]


@dataclass(frozen=True)
class Mixture:
    """The choice for one model. `grouped`: fewer key-value heads than heads; `tied`: the embedding also makes the logits."""

    file_type: FileType
    layers: int
    tied: bool
    grouped: bool

    def choose(self, name: str, shape: tuple[int, ...]) -> tuple[GGMLQuantizationType, bool]:
        """The type of tensor `name` (GGUF) of `shape` (rows last), and whether its row size forced another than planned."""
        if len(shape) < 2 or not name.endswith(".weight") or "_norm." in name:
            return Q.F32, False
        wanted = self._planned(name, shape)
        chosen = wanted
        while shape[-1] % GGML_QUANT_SIZES[chosen][0]:
            chosen = _FALLBACK.get(chosen, Q.F16)
        return chosen, chosen != wanted

    def _planned(self, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        base, more = self.file_type.base, self.file_type.more
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            whole = shape[-1] % GGML_QUANT_SIZES[base][0] == 0
            return self.file_type.embedding if whole or more is None else Q.Q8_0
        if more is None:
            return base
        sensitive = re.match(r"blk\.(\d+)\.(attn_v|ffn_down)\.", name)
        if sensitive and _more_bits(int(sensitive[1]), self.layers):
            return more
        if sensitive and sensitive[2] == "attn_v" and base is Q.Q4_K and self.grouped and self.layers == _SEVENTY_B_LAYERS:
            return Q.Q5_K
        return base


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
