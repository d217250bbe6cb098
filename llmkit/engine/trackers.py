"""Experiment trackers: where they write, and what becomes of their refusals. Knows transformers' callbacks for them."""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from llmkit.engine import distributed
from llmkit.errors import MachineError

# transformers would have it write below the checkpoints, which go. The others write beside the caller too.
_TENSORBOARD = ("TENSORBOARD_LOGGING_DIR", "tensorboard")
_INTEGRATIONS = "transformers.integrations"
_HELP = {
    "WandbCallback": "log in with `wandb login`, or set WANDB_MODE=offline",
    "MLflowCallback": "set MLFLOW_TRACKING_URI to a server or a folder",
    "SwanLabCallback": "log in with `swanlab login`, or set SWANLAB_MODE=offline",
}


def prepare(names: Sequence[str]) -> None:
    """Before a trainer is made: say where to write what no variable of the user's says."""
    if "tensorboard" in names:
        os.environ.setdefault(*_TENSORBOARD)
    if "swanlab" in names and distributed.rank() == 0:
        _guarded("SwanLabCallback", _start_swanlab)()


def guard(trainer: Any) -> None:
    """Let a tracker that refuses to start be told as such: no key, no server, no network."""
    for callback in trainer.callback_handler.callbacks:
        kind = type(callback)
        if kind.__module__.startswith(_INTEGRATIONS) and hasattr(callback, "setup"):
            callback.setup = _guarded(kind.__name__, callback.setup)


def _guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except Exception as error:  # the trackers' errors share no base
            text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            tracker = name.removesuffix("Callback").lower()
            raise MachineError(
                f"{tracker} did not start: {text}",
                code="LK0412",
                next=_HELP.get(name, "mend it, or take it out of finetune.report_to"),
            ) from error

    return guarded


def _start_swanlab() -> None:
    # transformers asks it for a run before there is one, which it answers with an error.
    swanlab = importlib.import_module("swanlab")
    swanlab.init(project=os.environ.get("SWANLAB_PROJECT", "llmkit"))
