"""quantize: MODEL → QUANTIZED, a bitsandbytes checkpoint that transformers loads again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llmkit.artifact import Artifact, Facts, Kind, digest

VERB = "quantize"
REVISION = 2
KIND = Kind.QUANTIZED
ModuleName = Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*$", max_length=200)]
# Release 0.14.0.1, the newest seen, asks for transformers 5.15 to 5.17, and llmkit for 5.20 and more.
REFUSED = "llm-compressor needs transformers 5.17 or older; run it on the merged model in an environment of its own"


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["bitsandbytes", "gptq", "awq", "w8a8"] = Field(
        "bitsandbytes", description="bitsandbytes; gptq, awq and w8a8 are refused, with the way to them."
    )
    bits: Literal[4, 8] = Field(description="8: LLM.int8(); 4: as quant_type says.")
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="Of 4 bits: NF4 (normal float) or FP4.")
    double_quant: bool = Field(False, description="Of 4 bits: quantize the scales too, which saves 0.4 bits a weight.")
    skip: tuple[ModuleName, ...] = Field((), description="Modules to leave as they are, such as down_proj; lm_head always is.")

    @model_validator(mode="before")
    @classmethod
    def _is_possible(cls, given: object) -> object:
        if isinstance(given, Mapping) and given.get("method") in ("gptq", "awq", "w8a8"):
            raise ValueError(f"method {given['method']}: {REFUSED}")
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.bits == 8 and (self.double_quant or self.quant_type != "nf4"):
            raise ValueError("quant_type and double_quant go with bits: 4")
        return self

    @property
    def name(self) -> str:
        """One for each combination: int8, nf4, fp4-dq, nf4-skip-1a2b3c."""
        kind = "int8" if self.bits == 8 else self.quant_type
        skipped = f"-skip-{digest(sorted(set(self.skip)))[:6]}" if self.skip else ""
        return f"{kind}{'-dq' if self.double_quant else ''}{skipped}"


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Quantize and try the saved copy; see `engine.quantize.quantize`.

    Raises:
        UsageError: `skip` names no layer of the model.
        DataError: the model is quantized already.
        FidelityError: the saved copy does not speak.
    """
    from llmkit.engine import quantize

    settings = quantize.Settings(config.bits, config.quant_type, config.double_quant, config.skip)
    return quantize.quantize(inputs["model"].path, out, settings)
