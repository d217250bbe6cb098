"""What the trainers of both objectives share: our batches, our checkpoints, no network. Knows TRL; nothing of recipes."""

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging as transformers_logging

from llmkit.engine import checkpoints
from llmkit.errors import FidelityError
from llmkit.progress import Bar

LOG_FIELDS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
    "nll_loss": "nll",
    "rewards/margins": "rewards_margin",
    "rewards/accuracies": "rewards_accuracy",
}


class Laid(Dataset[Any]):
    """Items in the order they are to be seen."""

    def __init__(self, items: Sequence[Any], order: Sequence[int]) -> None:
        self._items = items
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Any:
        return self._items[self._order[position]]

    def map(self, *_: Any, **__: Any) -> "Laid":
        """TRL's ORPO trainer maps its own tokenizer over its dataset; ours is tokenized, with a mask TRL could not make."""
        return self


class LocalTrainer:
    """Mixed in before a TRL trainer: it keeps what it does to this machine and to what we ask of it."""

    _tokens_seen = 0

    def _send_telemetry(self) -> None:
        """TRL reports each trainer's construction to its makers; we do not."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # TRL's would write a model card first

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers' would ask the hub for the base model, copy the tokenizer and pickle its arguments.
        self.model.save_pretrained(output_dir, save_embedding_layers=False)  # type: ignore[attr-defined]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[attr-defined]

    def _count(self, mask: torch.Tensor) -> None:
        """Tokens of a batch, padding left out."""
        self._tokens_seen += int(mask.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a step; the last call of a run only sums it up
            logs["tokens"] = self._tokens_seen
            self._tokens_seen = 0
        super().log(logs, start_time)  # type: ignore[misc]


class Watch(TrainerCallback):
    """Follows a run: bar, loss log, whole checkpoints; stops it at the first loss or gradient that is no number."""

    def __init__(self, bar: Bar, log: Path, *, run: str, seconds_before: float) -> None:
        self._bar = bar
        self._log = log
        self._run = run
        self._seconds_before = seconds_before
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent training, that of the runs this one resumes included."""
        return self._seconds_before + time.monotonic() - self._start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start = time.monotonic()
        self._bar.advance(state.global_step)
        lines = [_line(entry) for entry in state.log_history if "loss" in entry]
        self._log.write_text("".join(lines), "utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(entry.get(name, 0.0)):
                raise FidelityError(
                    f"the {name.replace('_', ' ')} is {entry[name]} at step {state.global_step}; nothing was written",
                    next="lower finetune.lr, or set finetune.precision=fp32",
                )
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(_line(entry))
        self._bar.advance(1, f"loss {entry['loss']:.2f}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = Path(args.output_dir) / f"{checkpoints.PREFIX}{state.global_step}"
        checkpoints.mark(path, run=self._run, seconds=self.seconds)


def only(trainer: Any, watch: Watch) -> None:
    """Let `watch` alone report: transformers' own callbacks print."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(watch)


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
    checkpoint_every: int,
    seed: int,
    cpu: bool,
) -> dict[str, Any]:
    """transformers' TrainingArguments for a run: no reports, no prints, every step logged."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": lr,
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        "warmup_steps": math.ceil(steps * warmup),
        "weight_decay": weight_decay,
        "seed": seed,
        "use_cpu": cpu,
        "bf16": False,  # autocast is ours, so that training and measuring share it
        "gradient_checkpointing": not cpu,
        "save_steps": checkpoint_every,
        "save_total_limit": 2,  # the older one stays until the newer is whole
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a NaN behind the mean of earlier losses
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not cpu,
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


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """(rows, longest row), filled on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _line(entry: dict[str, Any]) -> str:
    kept = {"step": entry["step"], **{ours: entry[theirs] for theirs, ours in LOG_FIELDS.items() if theirs in entry}}
    return json.dumps(kept) + "\n"
