"""Trains a model on records and writes what it learnt to a folder. Knows records, models and files; nothing of recipes.

Whatever kills it, it can be called again with the same arguments: it goes on from the last whole checkpoint in `out`,
and what it then writes equals an uninterrupted run's, bit for bit.
"""

import hashlib
import json
import math
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from llmkit import progress
from llmkit.artifact import Facts, digest, write_json
from llmkit.engine import checkpoints, distributed, lora, objectives, sft, trackers, trainers
from llmkit.engine.batches import layout, steps_for
from llmkit.engine.fused import fused
from llmkit.engine.loading import device, load_model, load_tokenizer, release
from llmkit.engine.loss import prove, score, scoring
from llmkit.engine.mask import Encoded, Record
from llmkit.engine.objectives import Reading, Task
from llmkit.engine.precision import Precision, choose
from llmkit.engine.samples import Sampler
from llmkit.engine.templates import ChatTemplate, resolve
from llmkit.engine.trainers import Laid, quiet
from llmkit.engine.watch import Watch, only
from llmkit.errors import DataError, MachineError, UsageError

HELD_OUT_RECORDS = 64  # enough for two digits of the loss, in seconds
LOG = "log.jsonl"
SAMPLES = "samples.jsonl"
_RUNNING = "running.json"
Method = Literal["lora", "qlora", "full"]


@dataclass(frozen=True)
class Settings:
    """How to train; `steps.finetune.Config` says what each means. Lengths are in tokens."""

    objective: objectives.Name
    method: Method
    template: str
    loss_on: Literal["all", "last"]
    on_overlong: Literal["error", "drop", "truncate_left", "split"]
    lora: lora.Shape
    lr: float
    beta: float
    nll_on: Literal["response", "full"]
    epochs: float
    max_steps: int | None
    batch_size: int
    micro_batch: int | None
    max_length: int
    schedule: Literal["cosine", "linear", "constant"]
    warmup: float
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int | None
    patience: int | None
    samples: int
    precision: Literal["auto", "bf16", "fp32"]
    seed: int
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Run:
    """What a run is made of, once its data are tokens."""

    base: Path
    base_ref: str
    init: Path | None
    settings: Settings
    template: ChatTemplate
    tokenizer: Any
    task: Task
    heard: Sequence[Encoded]  # held-out conversations, for the loss that every objective is told by
    asked: Sequence[Sequence[Any]]  # prompts to answer as training goes
    precision: Precision

    @property
    def batch_size(self) -> int:
        """As asked, or what there is; the same share for each process."""
        size = min(self.settings.batch_size, len(self.task.items))
        return size - size % distributed.processes()

    @property
    def steps(self) -> int:
        return steps_for(
            len(self.task.items), batch_size=self.batch_size, epochs=self.settings.epochs, max_steps=self.settings.max_steps
        )

    @property
    def checkpoint_every(self) -> int:
        return self.settings.checkpoint_every or max(20, math.ceil(self.steps / 20))

    @property
    def lengths(self) -> list[int]:
        return [len(self.task.learnt(item).input_ids) for item in self.task.items]

    @cached_property
    def identity(self) -> str:
        """Changes with whatever changes the result, the base model and the machine aside."""
        hasher = hashlib.sha256()
        for item in [*self.task.items, *self.task.valid]:
            for side in _sides(item):
                hasher.update(array("q", [len(side.input_ids), *map(int, side.labels_mask), *side.input_ids]).tobytes())
        start = self.init and hashlib.sha256((self.init / "adapter_model.safetensors").read_bytes()).hexdigest()
        data, processes = hasher.hexdigest(), distributed.processes()
        settings = asdict(replace(self.settings, report_to=()))  # who is told changes nothing
        return digest(settings, self.template.text, self.precision, start, processes, data)


@dataclass(frozen=True)
class _Footprint:
    """What a run may hold in memory at once: items per process, and whether activations are kept or made again."""

    micro_batch: int
    checkpointing: bool

    def smaller(self, *, least: int) -> "_Footprint | None":
        """The next thing to try when memory does not suffice: activations made again, then half the items."""
        if not self.checkpointing:
            return _Footprint(self.micro_batch, checkpointing=True)
        # A divisor, so that the batch stays whole.
        halves = [size for size in range(least, self.micro_batch // 2 + 1) if self.micro_batch % size == 0]
        return _Footprint(halves[-1], checkpointing=True) if halves else None


def train(
    base: Path,
    train_records: Sequence[Record],
    valid_records: Sequence[Record],
    out: Path,
    *,
    settings: Settings,
    base_ref: str = "",
    init: Path | None = None,
) -> Facts:
    """Write adapter or model, tokenizer with chat template, `log.jsonl` and `samples.jsonl` into `out`; return facts.

    Losses are in nats per token of the assistant's answers. Under a process group every process calls this; the first
    one writes.

    Args:
        base: the base model's folder.
        train_records, valid_records: with id, messages, and what the objective needs beside them.
        out: a folder, empty or left by a run of the same arguments that was killed.
        settings: how to train.
        base_ref: the base's name in adapter_config.json.
        init: an adapter's folder to start from.

    Raises:
        UsageError: the template or a LoRA target does not fit the model.
        DataError: nothing to train on, or a record that the template or the objective cannot use.
        FidelityError: a loss, gradient or weight is no number, or a mask or loss failed its proof.
        MachineError: out of memory.
    """
    run = _prepare(base, train_records, valid_records, settings, base_ref=base_ref, init=init)
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    with quiet(), _limits(folder):
        footprint: _Footprint | None = _footprint(run, folder)
        while footprint:
            release()  # what an earlier try held is in cycles, and its error is forgotten only now
            try:
                facts = _attempt(run, out, folder, footprint)
                break
            except torch.OutOfMemoryError:
                if distributed.processes() > 1:  # the others know nothing of it
                    raise
                footprint = _retreat(footprint, folder, least=run.task.least)
        else:
            raise torch.OutOfMemoryError("out of memory with the fewest records at a time")
    return {**_description(run), **facts}


def _prepare(
    base: Path,
    train_records: Sequence[Record],
    valid_records: Sequence[Record],
    settings: Settings,
    *,
    base_ref: str,
    init: Path | None,
) -> _Run:
    template, tokenizer, precision = resolve(settings.template, base), load_tokenizer(base), choose(settings.precision)
    reading = Reading(tokenizer, template, settings.max_length, settings.on_overlong, settings.loss_on)
    stride = max(1, len(valid_records) // HELD_OUT_RECORDS)
    held_out = valid_records[::stride][:HELD_OUT_RECORDS]
    task = objectives.prepare(
        settings.objective,
        train_records,
        held_out,
        reading,
        beta=settings.beta,
        nll_on=settings.nll_on,
        bf16=precision == "bf16",
    )
    _require(task, train_records, settings)
    heard = objectives.conversations(held_out, reading).items
    asked = [_question(record) for record in held_out[: settings.samples]]
    return _Run(base, base_ref, init, settings, template, tokenizer, task, heard, [one for one in asked if one], precision)


def _require(task: Task, records: Sequence[Record], settings: Settings) -> None:
    counts = task.counts
    if not task.items:
        reasons = f"{counts['overlong']} are over {settings.max_length} tokens, {counts['forged']} spell special tokens"
        raise DataError(
            f"nothing to train on: of {len(records)} records {reasons}",
            code="LK0401",
            next="raise finetune.max_length, or look at the data" if records else "loosen clean's rules or add data",
        )
    if settings.patience and len(task.valid) < task.least:
        raise DataError(
            "finetune.patience needs held-out records that the objective can use, and there are none",
            code="LK0402",
            next="raise data.split.valid, or leave patience out",
        )
    left_out = [f"{counts[name]} {name}" for name in ("overlong", "forged") if counts[name]]
    cut = [f"{counts[name]} {name}" for name in ("truncated", "split") if counts[name]]
    if left_out or cut:
        progress.note(f"finetune: records left out: {', '.join(left_out) or 'none'}; cut: {', '.join(cut) or 'none'}")


def _question(record: Record) -> list[Any]:
    """The conversation up to its last answer."""
    messages = list(record["messages"])
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


def _attempt(run: _Run, out: Path, folder: Path, footprint: _Footprint) -> Facts:
    """One try to train with this footprint, from the newest checkpoint if there is one."""
    model = _model(run)
    held_out = _Batches(run.heard, sft.collate, footprint.micro_batch)
    resumed = _newest(folder, run.identity)
    if resumed:
        progress.note(f"finetune goes on after step {resumed.step} of {run.steps}")
    with _core(model) if run.task.packed else nullcontext():
        trainer = _trainer(run, model, folder, footprint)
        with progress.track("finetune", total=run.steps) as bar:
            watch = Watch(
                bar,
                out / LOG,
                run=run.identity,
                seconds_before=resumed.seconds if resumed else 0.0,
                ids_at=lambda step: _ids(run, trainer.train_dataset, step),
            )
            # A model in shards speaks only if all processes ask it to.
            asked = run.asked if run.settings.strategy == "ddp" or distributed.processes() == 1 else ()
            sampler = Sampler(out / SAMPLES, asked, run.tokenizer, run.template, bf16=run.precision == "bf16")
            only(trainer, watch, sampler)
            trackers.guard(trainer)
            trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
            distributed.prove(trainer, run.settings.strategy)
    facts = {**_measured(trainer, watch, run, footprint), **_heard(trainer.model, held_out, run)}
    _keep(trainer, run, out)
    if distributed.rank() == 0:
        shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()
    return facts


@contextmanager
def _core(model: Any) -> Iterator[None]:
    with scoring(model), fused(model):
        yield


def _keep(trainer: Any, run: _Run, out: Path) -> None:
    """Write what was learnt, with the tokenizer and the template it was learnt in."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = distributed.gathered(model) if trainer.is_fsdp_enabled else None  # all processes take part
    if distributed.rank() == 0:
        keep = lora.save_full if run.settings.method == "full" else lora.save
        keep(model, out, weights=weights)
        run.tokenizer.chat_template = run.template.text
        run.tokenizer.save_pretrained(out)


def _model(run: _Run) -> Any:
    settings = run.settings
    model = load_model(run.base, four_bit=run.precision if settings.method == "qlora" else None)
    shortest = min(map(run.task.learnt, run.task.items), key=lambda encoded: len(encoded.input_ids))
    prove(model, _on_device(sft.collate([shortest])), tolerance=0.1 if settings.method == "qlora" else 1e-3)
    if settings.method == "full":
        return lora.prepare_full(model)
    return lora.attach(model, settings.lora, seed=settings.seed, precision=run.precision, base_ref=run.base_ref, init=run.init)


def _trainer(run: _Run, model: Any, folder: Path, footprint: _Footprint) -> Any:
    settings = run.settings
    order = layout(run.lengths, batch_size=run.batch_size, steps=run.steps, seed=settings.seed)
    trackers.prepare(settings.report_to)
    options = trainers.arguments(
        folder,
        micro_batch=footprint.micro_batch,
        accumulation=run.batch_size // footprint.micro_batch // distributed.processes(),
        steps=run.steps,
        lr=settings.lr,
        schedule=settings.schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        checkpoint_every=run.checkpoint_every,
        seed=settings.seed,
        cpu=device().type == "cpu",
        checkpointing=footprint.checkpointing,
        report_to=settings.report_to,
        strategy=settings.strategy,
    )
    trainer = run.task.build(model, Laid(run.task.items, order), options)
    trainer.keep = lora.save_full if settings.method == "full" else lora.save
    if len(run.task.valid) >= run.task.least:
        size = max(run.task.least, footprint.micro_batch)
        _validate(trainer, list(_Batches(run.task.valid, run.task.collate, size, by=run.task.learnt)), settings.patience)
    return trainer


def _validate(trainer: Any, batches: Sequence[dict[str, Any]], patience: int | None) -> None:
    """Measure the validation loss at each checkpoint, keep the best one, stop after `patience` worse ones."""
    trainer.validation = batches
    trainer.args.eval_strategy = IntervalStrategy.STEPS
    trainer.args.eval_steps = trainer.args.save_steps
    trainer.args.metric_for_best_model = "loss"
    trainer.args.greater_is_better = False
    trainer.args.load_best_model_at_end = True
    if patience:
        trainer.add_callback(EarlyStoppingCallback(patience))


class _Batches:
    """Items of like length in batches of `size`, on this machine's device."""

    def __init__(self, items: Sequence[Any], collate: Any, size: int, *, by: Any = lambda item: item) -> None:
        self._items = sorted(items, key=lambda item: len(by(item).input_ids))
        self._collate = collate
        self._size = size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Evenly, so that none stands alone at the end.
        count = math.ceil(len(self._items) / self._size)
        for number in range(count):
            part = slice(len(self._items) * number // count, len(self._items) * (number + 1) // count)
            yield _on_device(self._collate(self._items[part]))


def _heard(model: Any, batches: _Batches, run: _Run) -> dict[str, float | None]:
    """The base's and the trained model's loss on held-out conversations. Measured after training, which it cannot disturb."""
    if not run.heard:
        return {"valid_loss_before": None, "valid_loss_after": None}
    model.eval()
    with scoring(model), torch.no_grad(), _autocast(run):
        after = -torch.cat([score(model, batch) for batch in batches]).mean().item()
        if run.settings.method == "full":
            return {"valid_loss_before": _base_loss(batches, run), "valid_loss_after": after}
        with model.disable_adapter():
            before = -torch.cat([score(model, batch) for batch in batches]).mean().item()
    return {"valid_loss_before": before, "valid_loss_after": after}


def _base_loss(batches: _Batches, run: _Run) -> float:
    base = load_model(run.base)
    with scoring(base):
        return -torch.cat([score(base, batch) for batch in batches]).mean().item()


def _measured(trainer: Any, watch: Watch, run: _Run, footprint: _Footprint) -> Facts:
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(entry["tokens"] for entry in history)
    last = [entry["loss"] for entry in history[-10:]]
    return {
        "trainable_parameters": lora.trainable_parameters(trainer.model),
        "steps": len(history),
        "best_step": trainer.state.best_global_step,
        "micro_batch": footprint.micro_batch,
        "gradient_checkpointing": footprint.checkpointing,
        "processes": distributed.processes(),
        "tokens": tokens,
        "seconds": round(watch.seconds, 1),
        "tokens_per_second": round(tokens / watch.seconds, 1),
        "train_loss": sum(last) / len(last),
    }


def _description(run: _Run) -> Facts:
    return {
        "objective": run.settings.objective,
        "objective_details": run.task.details,
        "method": run.settings.method,
        "template": run.template.name,
        "eos_token": run.template.eos,
        "precision": run.precision,
        "records": len(run.task.items),
        **{f"records_{name}": count for name, count in run.task.counts.items()},
        **run.task.facts,
        "batch_size": run.batch_size,
    }


def _ids(run: _Run, data: Laid[Any], step: int) -> list[str]:
    return [run.task.learnt(data[place]).record for place in range((step - 1) * run.batch_size, step * run.batch_size)]


def _sides(item: Any) -> list[Encoded]:
    if isinstance(item, Encoded):
        return [item]
    return [value for value in vars(item).values() if isinstance(value, Encoded)]


def _footprint(run: _Run, folder: Path) -> _Footprint:
    """The largest that the settings ask for, or what an interrupted run of them has found to fit."""
    processes = distributed.processes()
    share = run.batch_size // processes
    if not share:
        raise UsageError(
            f"a batch of {min(run.settings.batch_size, len(run.task.items))} cannot be shared by {processes} processes",
            code="LK0410",
            next="raise finetune.batch_size, add data, or lower finetune.processes",
        )
    wanted = _Footprint(math.gcd(run.settings.micro_batch or share, share), checkpointing=False)
    try:
        known = json.loads((folder / _RUNNING).read_text("utf-8"))
        found = _Footprint(int(known["micro_batch"]), bool(known["checkpointing"]))
    except (OSError, ValueError, KeyError, TypeError):
        return wanted
    return found if found.micro_batch <= wanted.micro_batch and share % found.micro_batch == 0 else wanted


def _newest(folder: Path, identity: str) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, the same in each process: the first one clears torn ones away before any looks."""
    if distributed.rank() == 0:
        checkpoints.newest(folder, run=identity)
    PartialState().wait_for_everyone()
    return checkpoints.newest(folder, run=identity)


def _retreat(footprint: _Footprint, folder: Path, *, least: int) -> _Footprint | None:
    smaller = footprint.smaller(least=least)
    if smaller:
        write_json(folder / _RUNNING, asdict(smaller))
        how = "with gradient checkpointing" if smaller.checkpointing else ""
        progress.note(f"finetune: out of memory; on with {smaller.micro_batch} records at once {how}")
    return smaller


def _autocast(run: _Run) -> torch.autocast:
    return torch.autocast(device().type, torch.bfloat16, enabled=run.precision == "bf16")


def _on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device()) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@contextmanager
def _limits(folder: Path) -> Iterator[None]:
    """Tell of memory and disk that ran out in the user's terms; each library has words of its own."""
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as error:
        text = str(error)
        if any(sign in text for sign in ("out of memory", "allocate memory")):  # CUDA's words; a CPU's
            raise MachineError(
                "training ran out of memory", code="LK0406", next="lower finetune.micro_batch or finetune.max_length"
            ) from error
        if any(sign in text for sign in ("No space left", "File too large", "PytorchStreamWriter failed", "Disk quota")):
            raise MachineError(
                "the disk is full, or a file may not grow",
                code="LK0902",
                where=str(folder),
                next="free some, and run again: training goes on from its last whole checkpoint",
            ) from error
        raise
