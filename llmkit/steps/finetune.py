"""finetune: DATASET + base MODEL → ADAPTER. Trains on the assistant's answers; a killed run goes on where it was."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit import memory, progress
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import DataError, MachineError, UsageError

VERB = "finetune"
REVISION = 2
KIND = Kind.ADAPTER
# What a killed run left in its folder is its checkpoints.
RESUMABLE = True
DEFAULT_LR = {"sft": 2e-4, "orpo": 2e-5, "dpo": 5e-6, "kto": 5e-6}
FULL_LR = 1e-5
DEFAULT_BETA = {"sft": 0.05, "orpo": 0.05, "dpo": 0.1, "kto": 0.1}
DEFAULT_SEED = 42
PAIRED = ("orpo", "dpo")
REPORT = "report.html"


class Lora(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(16, ge=1, description="Width of the adapter.")
    alpha: float = Field(32, gt=0, description="The adapter is scaled by alpha / rank (rslora: by alpha / √rank).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Which linear layers: all-linear (the output head excepted), or names such as [q_proj, v_proj].",
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank, for high ranks (arXiv:2312.03732).")
    dora: bool = Field(False, description="Also learn each output's magnitude (arXiv:2402.09353).")
    modules_to_save: tuple[str, ...] = Field(
        (), description="Modules trained whole beside the adapter, such as [embed_tokens]."
    )


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    objective: Literal["sft", "orpo", "dpo", "kto"] = Field(
        "sft",
        description="sft learns the answers; orpo (arXiv:2403.07691) and dpo (arXiv:2305.18290) prefer each to a rejected "
        "one; kto (arXiv:2402.01306) learns from answers marked good or bad.",
    )
    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="lora: an adapter; qlora: an adapter over a 4-bit base; full: every weight."
    )
    template: str = Field(
        "model",
        description="Chat template: model (the base's own), chatml, gemma, llama2, llama3, mistral, phi3, qwen, "
        "or the path of a .jinja file.",
    )
    loss_on: Literal["all", "last"] = Field("all", description="sft: which of a dialogue's answers are learnt.")
    on_overlong: Literal["error", "drop", "truncate_left", "split"] = Field(
        "drop",
        description="A record over max_length: stop; leave it out; take its oldest turns away; or (sft) cut it into several.",
    )
    lora: Lora = Field(Lora(), description="The adapter.")
    init_adapter: str | None = Field(None, description="The folder of an adapter of the same shape to start from.")
    lr: float | None = Field(
        None, gt=0, description="Peak learning rate; null is 2e-4 for sft, 2e-5 for orpo, 5e-6 for dpo and kto, 1e-5 for full."
    )
    beta: float | None = Field(
        None, gt=0, description="orpo: weight of the odds-ratio term (0.05); dpo, kto: how close to the base it stays (0.1)."
    )
    nll_on: Literal["response", "full"] = Field(
        "response", description="orpo's likelihood term: on the chosen answer, or on prompt and answer as TRL has it."
    )
    epochs: float = Field(1, gt=0, description="Passes over the training records.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, in place of epochs.")
    batch_size: int = Field(8, ge=1, description="Records (orpo, dpo: pairs) an optimizer step learns from.")
    micro_batch: int | None = Field(
        None, ge=1, description="Records in memory at once; divides batch_size. null: all; halved where memory runs out."
    )
    max_length: int = Field(1024, ge=8, description="Tokens of a record; see on_overlong.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after its warm-up."
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are scaled down to this.")
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; each measures the validation loss. null: a twentieth, at least 20."
    )
    patience: int | None = Field(None, ge=1, description="Stop after so many checkpoints without a lower validation loss.")
    samples: int = Field(2, ge=0, le=64, description="Held-out prompts answered at each checkpoint, into samples.jsonl.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 multiplies in bfloat16 (what learns stays fp32); auto takes it where the processor has it."
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="null: the recipe's.")
    processes: int = Field(1, ge=1, le=1024, description="Processes on this machine; an outside torchrun counts its own.")
    strategy: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp", description="How processes share the work: ddp copies the model, fsdp and deepspeed (an extra) share it out."
    )
    report_to: tuple[Literal["wandb", "tensorboard", "mlflow", "swanlab", "trackio", "clearml", "comet_ml"], ...] = Field(
        (), description="Trackers to report to, each a package of its own."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.on_overlong == "split" and self.objective != "sft":
            raise ValueError(f"on_overlong: split is for sft; {self.objective} learns from the last answer alone")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of processes {self.processes}")
        if self.init_adapter and self.method == "full":
            raise ValueError("init_adapter is for lora and qlora; full training starts from the base")
        return self


def check(config: Config, base_dir: Path | None) -> None:
    """Find a missing or unfit chat template, or a missing package, before any weight is loaded.

    `base_dir`: the base model's folder, if it is here.

    Raises:
        UsageError: see `engine.templates.resolve`.
        MachineError: a package is not installed.
    """
    from llmkit.engine import templates

    templates.check(config.template, base_dir)
    # Each tracker's package has its name.
    needed = [*config.report_to, *(["deepspeed"] if config.strategy == "deepspeed" else [])]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MachineError(
                f"the recipe asks for {package}, which is not installed", code="LK0907", next=f"pip install {package}"
            )


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Train; see `engine.train.train`. `inputs`: dataset and base, perhaps init.

    Raises:
        DataError: no training records, or records that lack what the objective needs.
        Others: as `engine.train.train`.
    """
    from llmkit.engine import ranks

    dataset, base, init = inputs["dataset"].path, inputs["base"], inputs.get("init")
    if init is not None:
        _same_base(init, base)
    base_ref = str(base.manifest.config.get("origin", ""))
    job = {
        "config": config.model_dump(mode="json"),
        "dataset": str(dataset),
        "base": str(base.path),
        "base_ref": base_ref,
        "init": str(init.path) if init else None,
        "out": str(out),
    }
    facts = ranks.run(work, job, processes=config.processes, title="training")
    _report(out, facts)
    return facts


def work(job: Mapping[str, Any], bar: progress.Bar) -> Facts:
    """What each training process does; `job` is plain data, as `run` makes it."""
    from llmkit.engine import lora, train

    memory.return_early()
    config, dataset, base = Config(**job["config"]), Path(job["dataset"]), Path(job["base"])
    records = {split: _records(dataset / f"{split}.jsonl") for split in ("train", "valid")}
    _require(records["train"], config.objective, where=str(dataset / "train.jsonl"))
    plain = config.model_dump(exclude={"lora", "lr", "beta", "seed", "init_adapter", "processes"})
    settings = train.Settings(
        **plain,
        lora=lora.Shape(**config.lora.model_dump()),
        lr=config.lr or (FULL_LR if config.method == "full" else DEFAULT_LR[config.objective]),
        beta=config.beta or DEFAULT_BETA[config.objective],
        seed=DEFAULT_SEED if config.seed is None else config.seed,
    )
    init = Path(job["init"]) if job["init"] else None
    return train.train(
        base, records["train"], records["valid"], Path(job["out"]), settings=settings, base_ref=job["base_ref"], init=init
    )


def _same_base(init: Artifact, base: Artifact) -> None:
    trained_on = init.manifest.inputs.get("base")
    if trained_on and trained_on != base.fingerprint:
        raise UsageError(
            "the adapter to start from was trained on another base",
            code="LK0314",
            where=str(init.path),
            next="start from one that was trained on this base, or leave finetune.init_adapter out",
        )


def _report(out: Path, facts: Facts) -> None:
    """Draw the run as a page; there are no samples where none were asked for."""
    from llmkit.report import training

    def lines(name: str) -> list[dict[str, Any]]:
        if not (out / name).exists():
            return []
        with (out / name).open(encoding="utf-8") as stream:  # not splitlines: an answer may hold U+2028
            return [json.loads(line) for line in stream]

    (out / REPORT).write_text(training.page(lines("log.jsonl"), lines("samples.jsonl"), facts), "utf-8")


def _records(path: Path) -> list[dict[str, Any]]:
    from llmkit.data.record import read_records

    return [
        {
            "id": record.id,
            "messages": record.messages,
            **({} if record.rejected is None else {"rejected": record.rejected}),
            **({} if record.score is None else {"score": record.score}),
        }
        for record in read_records(path)
    ]


def _require(records: list[dict[str, Any]], objective: str, *, where: str) -> None:
    if not records:
        raise DataError(
            "the dataset has no training record", code="LK0217", where=where, next="loosen clean's rules or add data"
        )
    bare = sum("rejected" not in record for record in records)
    if objective in PAIRED and bare:
        raise DataError(
            f"{objective} needs a rejected answer in every record; {bare} of {len(records)} have none",
            code="LK0209",
            where=where,
            next="add data.pairs: {rejected: shuffle | generate}, or {rating: FIELD} or {edited: FIELD}",
        )
