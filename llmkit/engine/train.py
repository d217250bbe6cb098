"""Trains a LoRA adapter and writes it to a folder. Knows records, models and files; nothing of recipes or artifacts.

Whatever kills it, it can be called again with the same arguments: it goes on from the last whole checkpoint in `out`,
and the adapter it then writes equals an uninterrupted run's, bit for bit.
"""

import hashlib
import math
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llmkit import progress
from llmkit.artifact import Facts, digest
from llmkit.engine import checkpoints, lora, mask, orpo, sft
from llmkit.engine.batches import layout, steps_for
from llmkit.engine.loading import device, load_model, load_tokenizer
from llmkit.engine.loss import labelled_log_probs, prove_head
from llmkit.engine.mask import Encoded, Encodings, Pair, Record
from llmkit.engine.precision import Precision, choose
from llmkit.engine.templates import ChatTemplate, resolve
from llmkit.engine.trainers import Laid, Watch, arguments, only, quiet
from llmkit.errors import DataError, MachineError

HELD_OUT_RECORDS = 64  # enough for two digits of the loss, in seconds
LOG = "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """How to train; `steps.finetune.Config` says what each means. Lengths are in tokens."""

    objective: Literal["sft", "orpo"]
    template: str
    rank: int
    alpha: float
    dropout: float
    targets: lora.Targets
    lr: float
    beta: float
    epochs: float
    max_steps: int | None
    batch_size: int
    micro_batch: int | None
    max_length: int
    schedule: Literal["cosine", "linear", "constant"]
    warmup: float
    weight_decay: float
    checkpoint_every: int
    precision: Literal["auto", "bf16", "fp32"]
    seed: int


@dataclass(frozen=True)
class _Run:
    """What a run is made of, once its data are tokens."""

    settings: Settings
    template: ChatTemplate
    tokenizer: Any
    train: Encodings[Encoded] | Encodings[Pair]
    valid: Encodings[Encoded]
    precision: Precision

    @property
    def batch_size(self) -> int:
        return min(self.settings.batch_size, len(self.train.items))

    @property
    def micro_batch(self) -> int:
        return math.gcd(self.settings.micro_batch or self.batch_size, self.batch_size)

    @property
    def steps(self) -> int:
        return steps_for(
            len(self.train.items), batch_size=self.batch_size, epochs=self.settings.epochs, max_steps=self.settings.max_steps
        )

    @property
    def identity(self) -> str:
        """Changes with whatever changes the result, the base model and the machine aside."""
        hasher = hashlib.sha256()
        for item in self.train.items:
            for side in [item.chosen, item.rejected] if isinstance(item, Pair) else [item]:
                hasher.update(array("q", [len(side.input_ids), *side.labels, *side.input_ids]).tobytes())
        return digest(asdict(self.settings), self.template.text, self.precision, hasher.hexdigest())


def train(
    base: Path,
    train_records: Sequence[Record],
    valid_records: Sequence[Record],
    out: Path,
    *,
    settings: Settings,
    base_ref: str = "",
) -> Facts:
    """Write adapter, tokenizer with chat template, and `log.jsonl` (a line a step) into `out`; return what was measured.

    Losses are in nats per token of the assistant's answers. `base_ref` names the base in adapter_config.json.

    Raises:
        UsageError: the template or a LoRA target does not fit the model.
        DataError: nothing to train on, or a record that the template or the objective cannot use.
        FidelityError: a loss, gradient or weight is no number, or a mask or loss failed its proof.
        MachineError: out of memory.
    """
    run = _prepare(base, train_records, valid_records, settings)
    with quiet(), _memory():
        model = _adapted(base, run, base_ref)
        seconds, history = _train(model, run, out)
        before, after = _held_out_losses(model, run)
        lora.save(model, out)
        run.tokenizer.chat_template = run.template.text
        run.tokenizer.save_pretrained(out)
    shutil.rmtree(out / "checkpoints")
    tokens = sum(entry["tokens"] for entry in history)
    last = [entry["loss"] for entry in history[-10:]]
    return {
        "objective": settings.objective,
        "objective_details": orpo.OBJECTIVE if settings.objective == "orpo" else sft.OBJECTIVE,
        "template": run.template.name,
        "eos_token": run.template.eos,
        "precision": run.precision,
        "trainable_parameters": lora.trainable_parameters(model),
        "records": len(run.train.items),
        "dropped_overlong": run.train.overlong,
        "dropped_forged": run.train.forged,
        "steps": run.steps,
        "batch_size": run.batch_size,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "train_loss": sum(last) / len(last),
        "valid_loss_before": before,
        "valid_loss_after": after,
    }


def _prepare(base: Path, train_records: Sequence[Record], valid_records: Sequence[Record], settings: Settings) -> _Run:
    template = resolve(settings.template, base)
    tokenizer = load_tokenizer(base)
    encode = mask.encode_pairs if settings.objective == "orpo" else mask.encode_all
    encoded = encode(train_records, tokenizer, template, max_length=settings.max_length)
    if not encoded.items:
        reasons = f"{encoded.overlong} are over {settings.max_length} tokens, {encoded.forged} spell special tokens"
        raise DataError(
            f"nothing to train on: of {len(train_records)} records {reasons}",
            next="raise finetune.max_length, or look at the data" if train_records else "loosen clean's rules or add data",
        )
    if encoded.overlong or encoded.forged:
        progress.note(f"finetune: left out {encoded.overlong} overlong records and {encoded.forged} that spell special tokens")
    stride = max(1, len(valid_records) // HELD_OUT_RECORDS)
    valid = mask.encode_all(valid_records[::stride][:HELD_OUT_RECORDS], tokenizer, template, max_length=settings.max_length)
    return _Run(settings, template, tokenizer, encoded, valid, choose(settings.precision))


def _adapted(base: Path, run: _Run, base_ref: str) -> Any:
    settings, model = run.settings, load_model(base)
    shortest = min((_learnt(item) for item in run.train.items), key=lambda encoded: len(encoded.input_ids))
    prove_head(model, _on_device(sft.collate([shortest])))
    return lora.attach(
        model,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        seed=settings.seed,
        precision=run.precision,
        base_ref=base_ref,
    )


def _train(model: Any, run: _Run, out: Path) -> tuple[float, list[dict[str, Any]]]:
    """Train `model` in place; the seconds it took and one entry a step."""
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    resumed = checkpoints.newest(folder, run=run.identity)
    if resumed:
        progress.note(f"finetune goes on after step {resumed.step} of {run.steps}")
    trainer = _trainer(model, run, folder)
    with progress.track("finetune", total=run.steps) as bar:
        watch = Watch(bar, out / LOG, run=run.identity, seconds_before=resumed.seconds if resumed else 0.0)
        only(trainer, watch)
        trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
    return watch.seconds, [entry for entry in trainer.state.log_history if "loss" in entry]


def _trainer(model: Any, run: _Run, folder: Path) -> Any:
    settings = run.settings
    lengths = [len(_learnt(item).input_ids) for item in run.train.items]
    data = Laid(run.train.items, layout(lengths, batch_size=run.batch_size, steps=run.steps, seed=settings.seed))
    options = arguments(
        folder,
        micro_batch=run.micro_batch,
        accumulation=run.batch_size // run.micro_batch,
        steps=run.steps,
        lr=settings.lr,
        schedule=settings.schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        checkpoint_every=settings.checkpoint_every,
        seed=settings.seed,
        cpu=device().type == "cpu",
    )
    bf16 = run.precision == "bf16"
    if settings.objective == "orpo":
        return orpo.build(model, data, run.tokenizer, arguments=options, bf16=bf16, beta=settings.beta)
    return sft.build(model, data, run.tokenizer, arguments=options, bf16=bf16)


def _held_out_losses(model: Any, run: _Run) -> tuple[float | None, float | None]:
    """The base's and the adapted model's loss on the held-out records. Measured after training, which it cannot disturb."""
    if not run.valid.items:
        return None, None
    model.eval()
    items = sorted(run.valid.items, key=lambda item: len(item.input_ids))
    batches = [
        _on_device(sft.collate(items[start : start + run.micro_batch])) for start in range(0, len(items), run.micro_batch)
    ]
    losses = []
    for view in (model.disable_adapter(), nullcontext()):
        with view, torch.no_grad(), _autocast(run):
            losses.append(-torch.cat([labelled_log_probs(model, batch)[0] for batch in batches]).mean().item())
    return losses[0], losses[1]


def _learnt(item: Encoded | Pair) -> Encoded:
    return item.chosen if isinstance(item, Pair) else item


def _autocast(run: _Run) -> torch.autocast:
    return torch.autocast(device().type, torch.bfloat16, enabled=run.precision == "bf16")


def _on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device()) for name, tensor in batch.items()}


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("out of memory", "allocate memory")):  # CUDA's words; a CPU's
            raise
        raise MachineError("training ran out of memory", next="lower finetune.micro_batch or finetune.max_length") from error
