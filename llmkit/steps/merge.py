"""merge: ADAPTER + base MODEL → MODEL, published only if it speaks as base + adapter does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import UsageError

VERB = "merge"
REVISION = 1
KIND = Kind.MODEL


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="What is saved; auto is bf16 unless rounding would lose over 5 % of the fine-tune, then fp32."
    )


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Merge and prove; see `engine.merge.merge`.

    Raises:
        UsageError: the adapter was trained on another base.
        FidelityError: the logits differ; nothing is published.
    """
    from llmkit.engine import merge

    adapter, base = inputs["adapter"], inputs["base"]
    trained_on = adapter.manifest.inputs.get("base")
    if trained_on and trained_on != base.fingerprint:
        raise UsageError(
            "this adapter was trained on another base", where=str(adapter.path), next="merge it into the base it was trained on"
        )
    eos = adapter.facts.get("eos_token")
    return merge.merge(base.path, adapter.path, out, dtype=config.dtype, eos_tokens=(eos,) if eos else ())
