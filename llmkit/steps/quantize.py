"""quantize: MODEL → QUANTIZED, a bitsandbytes checkpoint that transformers loads again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit.artifact import Artifact, Facts, Kind

VERB = "quantize"
REVISION = 1
KIND = Kind.QUANTIZED
NAMES = {8: "int8", 4: "nf4"}


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    bits: Literal[4, 8] = Field(description="8: LLM.int8(); 4: NF4.")

    @property
    def name(self) -> str:
        return NAMES[self.bits]


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Quantize and try the saved copy; see `engine.quantize.quantize`.

    Raises:
        DataError: the model is quantized already.
        FidelityError: the saved copy does not speak.
    """
    from llmkit.engine import quantize

    return quantize.quantize(inputs["model"].path, out, bits=config.bits)
