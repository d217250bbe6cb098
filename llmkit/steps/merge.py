"""merge: ADAPTER (or several) + base MODEL → MODEL, published only if it speaks as base + adapter does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import UsageError

VERB = "merge"
REVISION = 2
KIND = Kind.MODEL


class Other(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(min_length=1, description="The folder of another adapter, trained on the same base.")
    weight: float = Field(1.0, allow_inf_nan=False, description="Its weight in the sum; negative takes it away.")


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="What is saved; auto is bf16 unless rounding would lose over 5 % of the fine-tune, then fp32."
    )
    weight: float = Field(1.0, allow_inf_nan=False, description="The weight of the adapter just trained in the sum.")
    adapters: tuple[Other, ...] = Field((), description="Other adapters to add, such as [{path: other-adapter, weight: 0.5}].")


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Merge and prove; see `engine.merge.merge`. `inputs`: base, adapter, and adapter.0, adapter.1, … for `config.adapters`.

    Raises:
        UsageError: an adapter was trained on another base.
        FidelityError: the logits differ; nothing is published.
    """
    from llmkit.engine import merge

    base, adapter = inputs["base"], inputs["adapter"]
    others = [inputs[f"adapter.{position}"] for position in range(len(config.adapters))]
    for one in (adapter, *others):
        _require_same_base(one, base)
    weights = [config.weight, *(other.weight for other in config.adapters)]
    parts = [(one.path, weight) for one, weight in zip((adapter, *others), weights, strict=True)]
    eos = adapter.facts.get("eos_token")
    return merge.merge(base.path, parts, out, dtype=config.dtype, eos_tokens=(eos,) if eos else ())


def _require_same_base(adapter: Artifact, base: Artifact) -> None:
    trained_on = adapter.manifest.inputs.get("base")
    if trained_on and trained_on != base.fingerprint:
        raise UsageError(
            "this adapter was trained on another base",
            code="LK0314",
            where=str(adapter.path),
            next="merge it into the base it was trained on",
        )
