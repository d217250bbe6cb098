"""What all objectives' trainers share: our batches, our checkpoints, no network. Knows transformers; nothing of recipes."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from llmkit.engine import distributed, lora
from llmkit.engine.loss import score
from llmkit.errors import FidelityError

Batch = Mapping[str, Any]
# (log-probabilities, batch, counts of the whole batch) → this part's share of its loss, and of its metrics.
Loss = Callable[[Tensor, Batch, Tensor], tuple[Tensor, dict[str, Tensor]]]
Item = TypeVar("Item")


class Laid(Dataset[Any], Generic[Item]):
    """Items in the order they are to be seen."""

    def __init__(self, items: Sequence[Item], order: Sequence[int]) -> None:
        self._items = items
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Item:
        return self._items[self._order[position]]

    def map(self, *_: Any, **__: Any) -> "Laid[Item]":
        """TRL's trainers map their own tokenizer over a dataset; ours is tokenized, with a mask TRL could not make."""
        return self


class Dealt(Dataset[Any]):
    """The micro-batches of one of `world` processes: those at `rank`, `rank + world`, … of all, each a list of items."""

    def __init__(self, data: Laid[Any], size: int, *, rank: int, world: int) -> None:
        self._data = data
        self._size = size
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        return len(self._data) // (self._size * self._world)

    def __getitem__(self, position: int) -> list[Any]:
        start = (position * self._world + self._rank) * self._size
        return [self._data[place] for place in range(start, start + self._size)]


class LocalTrainer:
    """Mixed in before a trainer: it keeps what it does to this machine and to what we ask of it."""

    validation: Sequence[Batch] = ()
    keep: Callable[..., None] = staticmethod(lora.save)  # what writes the weights that learn
    _tokens_seen = 0

    def _send_telemetry(self) -> None:
        """TRL reports each trainer's construction to its makers; we do not."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # TRL's would write a model card first
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined] # it is whole once each process has written its part

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        assert output_dir
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # all look for it next, to learn which checkpoint is the best
        # A model in shards is saved with its optimizer; transformers' would gather the frozen base as well.
        if not self.is_fsdp_enabled:  # type: ignore[attr-defined]
            Trainer.save_model(self, output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers' would ask the hub for the base model, copy the tokenizer and pickle its arguments.
        assert output_dir
        if self.args.should_save:  # type: ignore[attr-defined]
            self.keep(self.accelerator.unwrap_model(self.model), Path(output_dir))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's micro-batches. Not accelerate's: that one would repeat records to fill up the last batch."""
        me: Any = self
        dealt = Dealt(
            me.train_dataset,
            me.args.per_device_train_batch_size,
            rank=me.accelerator.process_index,
            world=me.accelerator.num_processes,
        )
        return DataLoader(
            dealt,
            batch_size=1,  # resuming skips whole batches of a loader that has a batch size
            collate_fn=lambda one: me.data_collator(one[0]),
            pin_memory=me.args.dataloader_pin_memory,
            generator=torch.Generator(),  # a loader draws a seed, which is not to come from the dropout's generator
        )

    def _count(self, mask: Tensor) -> None:
        """Tokens of a batch, padding left out."""
        self._tokens_seen += int(mask.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a step; other entries are validation's, and the last call of a run only sums it up
            logs["tokens"] = self._summed(self._tokens_seen)
            self._tokens_seen = 0
        super().log(logs, start_time)  # type: ignore[misc]

    def _summed(self, value: float) -> float:
        """`value` over all processes."""
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return value
        whole = isinstance(value, int)
        total = accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device), "sum").item()
        return int(total) if whole else total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss on `validation`: every process measures all of it, so that none has to wait for another's word."""
        self.model.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            metrics = {"eval_loss": self.validation_loss()}
        self.model.train()  # type: ignore[attr-defined]
        self.log(dict(metrics))
        tell = self.callback_handler.on_evaluate  # type: ignore[attr-defined]
        self.control = tell(self.args, self.state, self.control, metrics)  # type: ignore[attr-defined, has-type]
        return metrics

    def validation_loss(self) -> float:
        """Mean over the validation batches of the objective's own loss, in eval mode and without gradients."""
        sizes = [len(batch["input_ids"]) for batch in self.validation]
        losses = [
            float(self.compute_loss(self.model, self._prepare_inputs(dict(batch))))  # type: ignore[attr-defined]
            for batch in self.validation
        ]
        return sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)


class PackedTrainer(LocalTrainer, Trainer):
    """transformers' trainer over packed batches and a loss of ours. The model must be inside `loss.scoring`.

    Every process sees `counts` of the whole batch, so that micro-batches and processes learn what one batch would.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, bf16: bool, **options: Any) -> None:
        super().__init__(**options)
        self._loss = loss
        self._bf16 = bf16
        self._shares: dict[str, Tensor] = {}

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        if not batch_samples:
            return None
        counts = torch.stack([batch["counts"] for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum")

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Tensor:
        counts = inputs["counts"] if num_items_in_batch is None else num_items_in_batch
        loss, shares = self._share(model, inputs, counts)
        self._tokens_seen += inputs["input_ids"].numel()
        for name, value in shares.items():
            self._shares[name] = self._shares.get(name, torch.zeros_like(value)) + value.detach()
        # The gradients of all processes are averaged; their shares are to be summed.
        return loss * self.accelerator.num_processes

    def validation_loss(self) -> float:
        batches = [self._prepare_inputs(dict(batch)) for batch in self.validation]
        counts = torch.stack([batch["counts"] for batch in batches]).sum(0)
        return sum(float(self._share(self.model, batch, counts)[0]) for batch in batches)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: self._summed(float(value)) for name, value in self._shares.items()}
            self._shares.clear()
        super().log(logs, start_time)

    def _share(self, model: Any, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=self._bf16):
            log_probs = score(model, batch)
        loss, shares = self._loss(log_probs, batch, counts)
        if not math.isfinite(loss.item()):
            raise FidelityError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, at {_culprits(log_probs, batch)}",
                code="LK0405",
                next=REMEDY,
            )
        return loss, shares


REMEDY = "lower finetune.lr, set finetune.precision=fp32, or look at those records; the last good checkpoint is kept"


def build(
    model: Any, data: Laid[Any], *, arguments: Mapping[str, Any], collate: Callable[..., Any], loss: Loss, bf16: bool
) -> PackedTrainer:
    """A trainer ready to `train()`."""
    settled = TrainingArguments(**arguments)
    distributed.settle(settled)
    return PackedTrainer(model=model, args=settled, train_dataset=data, data_collator=collate, loss=loss, bf16=bf16)


def arguments(
    folder: Path,
    *,
    micro_batch: int,
    accumulation: int,
    steps: int,
    lr: float,
    schedule: str,
    warmup: float,
    weight_decay: float,
    max_grad_norm: float,
    checkpoint_every: int,
    seed: int,
    cpu: bool,
    checkpointing: bool,
    report_to: Sequence[str],
    strategy: distributed.Strategy,
) -> dict[str, Any]:
    """transformers' TrainingArguments for a run: no prints, every step logged."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": lr,
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        "warmup_steps": math.ceil(steps * warmup),
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "seed": seed,
        "use_cpu": cpu,
        "bf16": False,  # autocast is ours, so that training and measuring share it
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_steps": checkpoint_every,
        "save_total_limit": 3,  # the best one, and the older one until the newer is whole
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a NaN behind the mean of earlier losses
        "report_to": list(report_to) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not cpu,
        **distributed.options(strategy),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Let no library talk over our progress: no bars of theirs; warnings and loggers are held to errors."""
    loggers = [logging.getLogger(name) for name in ("transformers", "trl", "peft", "accelerate", "torch")]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(rows, longest row), filled on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _culprits(log_probs: Tensor, batch: Batch) -> str:
    """The records whose scores are no numbers; all of the batch where that cannot be told."""
    ids = batch["ids"]
    bad = batch["groups"][~log_probs.isfinite()].unique().tolist()
    found = sorted({ids[group % len(ids)] for group in bad}) or sorted(ids)
    return f"record {found[0]}" if len(found) == 1 else f"records {', '.join(found[:8])}"
