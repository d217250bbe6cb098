"""Where this process stands among those that train together, and what each strategy asks of the trainer.

Knows torch.distributed and accelerate; nothing of how processes are started (`ranks` does) or of what is learnt.
"""

from typing import Any, Literal

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmkit.errors import MachineError

Strategy = Literal["ddp", "fsdp", "deepspeed"]
# DeepSpeed's ZeRO stage 2 (arXiv:1910.02054): gradients and optimizer states are shared out. "auto": the trainer's own value.
_ZERO2 = {
    "zero_optimization": {"stage": 2},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
# Layers are found from the model's class. One full state, so that a checkpoint is plain files.
_FSDP = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}


def processes() -> int:
    """How many train together; 1 outside a group."""
    return torch.distributed.get_world_size() if _in_group() else 1


def rank() -> int:
    """This one's number among them, from 0."""
    return torch.distributed.get_rank() if _in_group() else 0


def options(strategy: Strategy) -> dict[str, Any]:
    """The part of transformers' TrainingArguments that a strategy needs in this group; nothing for a process alone."""
    if processes() == 1:
        return {}
    asked: dict[Strategy, dict[str, Any]] = {
        "ddp": {"ddp_find_unused_parameters": False},
        "fsdp": {"fsdp": True, "fsdp_config": dict(_FSDP)},
        "deepspeed": {"deepspeed": dict(_ZERO2)},
    }
    return asked[strategy]


def settle(arguments: Any) -> None:
    """Between making TrainingArguments and a trainer: let FSDP through on a processor.

    accelerate honours FSDP on accelerators alone, and elsewhere falls back to DDP without a word.
    """
    if arguments.fsdp and arguments.device.type == "cpu":  # reading `device` makes the state that is changed here
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def prove(trainer: Any, strategy: Strategy) -> None:
    """Fail where the trainer does not share the work as asked.

    Raises:
        MachineError: it fell back to another way.
    """
    if processes() == 1:
        return
    found = {"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.is_deepspeed_enabled, "ddp": True}[strategy]
    if trainer.args.world_size != processes() or not found:
        raise MachineError(
            f"finetune.strategy {strategy} did not take hold of {processes()} processes",
            code="LK0410",
            next="try finetune.strategy=ddp",
        )


def gathered(model: Any) -> dict[str, Tensor]:
    """The weights of `model` that learn, by name, whole and on this process's processor: {name: tensor}.

    Every process of the group must call it: a model in shards is brought together.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            found[name] = whole.detach().cpu().contiguous()
    return found


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
