"""An artifact that can speak, and the refusals of what cannot. Knows names and paths; loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmkit.errors import UsageError

SPEAKING = "name a model, quantized, adapter or GGUF folder, a .gguf file, runs/NAME of a recipe, or a model as recipes name it"


@dataclass(frozen=True)
class Found:
    """`name`: short, such as quickstart/q8_0; `path`: a GGUF file (the first of its parts) or a folder.

    `base`: an adapter's base, a folder; `lora`: a GGUF LoRA over the file in `path`.
    """

    name: str
    kind: Literal["gguf", "model", "quantized", "adapter"]
    path: Path
    base: Path | None = None
    lora: Path | None = None


def refuse(what: str, where: str | Path, *, next: str = SPEAKING) -> UsageError:
    return UsageError(what, code="LK0802", where=str(where), next=next)
