"""Which models become GGUF, and how: names, shapes, transforms and metadata, a table with one entry a family.

Knows config.json and tensor names; nothing of tokenizers, files or quantization. A new family is one `Architecture`.
Names and keys follow the GGUF specification and llama.cpp's graphs, which fix what a file can say.
"""

from llmkit.gguf.architectures.config import Metadata, ModelConfig, Value
from llmkit.gguf.architectures.families import ARCHITECTURES, COMPUTED, by_name, parse
from llmkit.gguf.architectures.rules import Architecture, Array, Rule, Tensor, Transform, dimensions

__all__ = [
    "ARCHITECTURES",
    "COMPUTED",
    "Architecture",
    "Array",
    "Metadata",
    "ModelConfig",
    "Rule",
    "Tensor",
    "Transform",
    "Value",
    "by_name",
    "dimensions",
    "parse",
]
