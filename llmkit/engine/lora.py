"""Puts a LoRA adapter on a model and takes it off to a folder. Knows weights; nothing of data or trainers."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model

from llmkit.artifact import write_json
from llmkit.engine.precision import Precision
from llmkit.errors import FidelityError, UsageError

Targets = Literal["all-linear"] | Sequence[str]


def attach(
    model: Any, *, rank: int, alpha: float, dropout: float, targets: Targets, seed: int, precision: Precision, base_ref: str
) -> Any:
    """`model` wrapped by peft with a fresh fp32 adapter; everything else is frozen.

    Under bf16 the frozen linear weights are rounded once: autocast would round them the same way at every step.

    Raises:
        UsageError: a target that names no linear layer, or the output head.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_checked(model, targets), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_ref
    if precision == "bf16":
        _round_frozen(adapted)
    return adapted


def save(adapted: Any, out: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `out`.

    Raises:
        FidelityError: a weight is NaN or infinite; nothing is written.
    """
    broken = [name for name, weight in adapted.named_parameters() if weight.requires_grad and not weight.isfinite().all()]
    if broken:
        raise FidelityError(f"{len(broken)} adapter weights are not finite, the first {broken[0]}; the adapter was not written")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # "auto" would ask the hub for the base model's vocabulary size.
        adapted.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    _sort_sets(out / "adapter_config.json")


def trainable_parameters(adapted: Any) -> int:
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def _checked(model: Any, targets: Targets) -> str | list[str]:
    if isinstance(targets, str):
        return targets
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    missing = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in layers)]
    if missing or not targets:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        what = f"lora.targets names no linear layer of this model: {', '.join(missing)}" if missing else "lora.targets is empty"
        raise UsageError(what, next=f"choose among {known}, or all-linear")
    return list(targets)


def _round_frozen(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
            # A new parameter: the head may share its weight with the embedding, which stays fp32.
            module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)


def _sort_sets(path: Path) -> None:
    """peft writes sets in hash order, which differs from run to run."""
    config = json.loads(path.read_text("utf-8"))
    write_json(
        path,
        {key: sorted(value) if key == "target_modules" and isinstance(value, list) else value for key, value in config.items()},
    )
