"""Follows a run: bar, loss log, whole checkpoints, and a stop at what is no number. Knows transformers' callbacks."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from llmkit.engine import checkpoints
from llmkit.engine.trainers import REMEDY
from llmkit.errors import FidelityError
from llmkit.progress import Bar

# The trainers' names → those of log.jsonl. Losses and margins are in nats.
LOG_FIELDS = {
    "loss": "loss",
    "eval_loss": "valid_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
    "nll": "nll",
    "rewards_margin": "rewards_margin",
    "rewards_accuracy": "rewards_accuracy",
    "rewards/margins": "rewards_margin",
    "rewards/accuracies": "rewards_accuracy",
    "kl": "kl",
}


class Watch(TrainerCallback):
    """One line a step into `log`, each checkpoint marked once it is whole.

    Args:
        bar: advances once a step.
        log: a JSON-lines file, rewritten from the trainer's own history where a run goes on.
        run: the identity that checkpoints are marked with.
        seconds_before: time that the runs this one goes on from have spent.
        ids_at: the ids of the records that a step learnt from.
    """

    def __init__(self, bar: Bar, log: Path, *, run: str, seconds_before: float, ids_at: Callable[[int], Sequence[str]]) -> None:
        self._bar = bar
        self._log = log
        self._run = run
        self._seconds_before = seconds_before
        self._ids_at = ids_at
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent training, that of the runs this one resumes included."""
        return self._seconds_before + time.monotonic() - self._start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start = time.monotonic()
        self._bar.advance(state.global_step)
        if state.is_world_process_zero:
            self._log.write_text("".join(map(_line, filter(_told, state.log_history))), "utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        entry = state.log_history[-1]
        if not _told(entry):
            return
        for name in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(entry.get(name, 0.0)):
                ids = ", ".join(list(self._ids_at(state.global_step))[:8])
                what = {"loss": "loss", "grad_norm": "gradient's norm", "eval_loss": "validation loss"}[name]
                raise FidelityError(
                    f"the {what} is {entry[name]} at step {state.global_step}, of records {ids}", code="LK0405", next=REMEDY
                )
        if state.is_world_process_zero:
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(_line(entry))
        if "loss" in entry:
            self._bar.advance(1, f"loss {entry['loss']:.2f}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"{checkpoints.PREFIX}{state.global_step}"
            checkpoints.mark(path, run=self._run, seconds=self.seconds)


def only(trainer: Any, *callbacks: TrainerCallback) -> None:
    """Let `callbacks` alone report: transformers' own print."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for ours in callbacks:
        trainer.add_callback(ours)


def _told(entry: dict[str, Any]) -> bool:
    return "loss" in entry or "eval_loss" in entry


def _line(entry: dict[str, Any]) -> str:
    kept = {"step": entry["step"], **{ours: entry[theirs] for theirs, ours in LOG_FIELDS.items() if theirs in entry}}
    return json.dumps(kept) + "\n"
