"""finetune: DATASET + base MODEL → ADAPTER. Trains a LoRA on the assistant's answers; a killed run goes on where it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import DataError

VERB = "finetune"
REVISION = 1
KIND = Kind.ADAPTER
# What a killed run left in its folder is its checkpoints.
RESUMABLE = True
DEFAULT_LR = {"sft": 2e-4, "orpo": 2e-5}
DEFAULT_SEED = 42


class Lora(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(16, ge=1, description="Width of the adapter.")
    alpha: float = Field(32, gt=0, description="The adapter is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Which linear layers: all-linear (the output head excepted), or names such as [q_proj, v_proj].",
    )


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    objective: Literal["sft", "orpo"] = Field(
        "sft", description="sft learns the answers; orpo also learns to prefer each to a rejected one (arXiv:2403.07691)."
    )
    template: str = Field(
        "model", description="Chat template: model (the base's own), chatml, gemma, or the path of a .jinja file."
    )
    lora: Lora = Field(Lora(), description="The adapter.")
    lr: float | None = Field(None, gt=0, description="Peak learning rate; null is 2e-4 for sft, 2e-5 for orpo.")
    beta: float = Field(0.05, gt=0, description="orpo: weight of the odds-ratio term.")
    epochs: float = Field(1, gt=0, description="Passes over the training records.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, in place of epochs.")
    batch_size: int = Field(8, ge=1, description="Records (orpo: pairs) an optimizer step learns from.")
    micro_batch: int | None = Field(None, ge=1, description="Records in memory at once; divides batch_size. null: all of them.")
    max_length: int = Field(1024, ge=8, description="Longer records, in tokens, are left out and counted; none is cut.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after its warm-up."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    checkpoint_every: int = Field(20, ge=1, description="Steps between checkpoints; a killed run repeats at most these.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 multiplies in bfloat16 (the adapter stays fp32); auto takes it where the processor has it."
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="null: the recipe's.")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "Config":
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        return self


def check(config: Config, base_dir: Path | None) -> None:
    """Find a missing or unfit chat template before any weight is loaded. `base_dir`: the base model's folder, if it is here.

    Raises:
        UsageError: see `engine.templates.resolve`.
    """
    from llmkit.engine import templates

    templates.check(config.template, base_dir)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Train; see `engine.train.train`. `inputs`: dataset and base.

    Raises:
        DataError: no training records, or orpo on records without a rejected answer.
        Others: as `engine.train.train`.
    """
    from llmkit.engine import train

    dataset, base = inputs["dataset"].path, inputs["base"]
    records = {split: _records(dataset / f"{split}.jsonl") for split in ("train", "valid")}
    _require(records["train"], config.objective, where=str(dataset / "train.jsonl"))
    settings = train.Settings(
        **config.model_dump(exclude={"lora", "lr", "seed"}),
        **config.lora.model_dump(),
        lr=config.lr or DEFAULT_LR[config.objective],
        seed=DEFAULT_SEED if config.seed is None else config.seed,
    )
    base_ref = str(base.manifest.config.get("origin", ""))
    return train.train(base.path, records["train"], records["valid"], out, settings=settings, base_ref=base_ref)


def _records(path: Path) -> list[dict[str, Any]]:
    from llmkit.data.record import read_records

    return [
        {"id": record.id, "messages": record.messages, **({} if record.rejected is None else {"rejected": record.rejected})}
        for record in read_records(path)
    ]


def _require(records: list[dict[str, Any]], objective: str, *, where: str) -> None:
    if not records:
        raise DataError("the dataset has no training record", where=where, next="loosen clean's rules or add data")
    bare = sum("rejected" not in record for record in records)
    if objective == "orpo" and bare:
        raise DataError(
            f"orpo needs a rejected answer in every record; {bare} of {len(records)} have none",
            where=where,
            next="add data.pairs: {rejected: shuffle | generate}, or {rating: FIELD} or {edited: FIELD}",
        )
