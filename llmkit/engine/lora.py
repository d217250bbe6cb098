"""Puts a LoRA adapter on a model, or makes all of it trainable, and writes what was trained to a folder.

Knows weights; nothing of data or trainers.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model

from llmkit.artifact import write_json
from llmkit.engine import adapted, delta
from llmkit.engine.precision import Precision
from llmkit.errors import FidelityError, UsageError

Targets = Literal["all-linear"] | Sequence[str]
_NAME = "default"
_SETS = ("target_modules", "modules_to_save")


@dataclass(frozen=True)
class Shape:
    """What an adapter is made of.

    rank, alpha: the delta is alpha / rank · B·A, or alpha / √rank · B·A with `rslora` (arXiv:2312.03732).
    dropout: share of the adapter's inputs dropped while training.
    targets: linear layers by name, or all-linear: all but the output head.
    dora: also learn each output row's magnitude (arXiv:2402.09353).
    modules_to_save: modules by name that are trained whole beside the adapter.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: Targets = "all-linear"
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()


def attach(model: Any, shape: Shape, *, seed: int, precision: Precision, base_ref: str, init: Path | None = None) -> Any:
    """`model` wrapped by peft with an fp32 adapter; everything else is frozen.

    Under bf16 the frozen linear weights are rounded once: autocast would round them the same way at every step.

    Args:
        model: a causal language model; its linear layers may be 4-bit.
        shape: the adapter's.
        seed: of a fresh adapter's weights.
        precision: of the frozen weights.
        base_ref: the base's name in adapter_config.json.
        init: the folder of an adapter of the same shape to start from; dropout may differ.

    Raises:
        UsageError: a target that names no linear layer, or the output head; a module to save that the model has not or
            that is a target; `init` has another shape.
        DataError: `init` holds no adapter that can be read.
        FidelityError: `init` holds a NaN.
    """
    torch.manual_seed(seed)
    saved = _checked_modules(model, shape)
    tied = bool(set(saved) & _tied_modules(model))
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=_checked_targets(model, shape.targets),
        modules_to_save=saved or None,
        use_rslora=shape.rslora,
        use_dora=shape.dora,
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config, adapter_name=_NAME)
    wrapped.peft_config[_NAME].base_model_name_or_path = base_ref
    if init:
        _start_from(wrapped, init, shape)
    if precision == "bf16":
        _round_frozen(wrapped)
    return wrapped


def save(adapted_model: Any, out: Path, *, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json into `out`.

    `weights`: what learns, by name, where the model itself holds but a shard of it.

    Raises:
        FidelityError: a weight is NaN or infinite; nothing is written.
    """
    _require_finite(_learning(adapted_model) if weights is None else weights, "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # "auto" would ask the hub for the base model's vocabulary size; a reference's adapter is not what is shipped.
        adapted_model.save_pretrained(out, state_dict=weights, save_embedding_layers=False, selected_adapters=[_NAME])
    (out / "README.md").unlink(missing_ok=True)
    _sort_sets(out / delta.CONFIG)


def prepare_full(model: Any) -> Any:
    """`model` with every weight trainable, in fp32 (under bf16 autocast rounds them as they are used).

    Raises:
        UsageError: the model is quantized.
    """
    if any(not weight.is_floating_point() for weight in model.parameters()):
        raise UsageError(
            "the weights of a quantized model cannot be trained",
            code="LK0309",
            next="train an adapter on it, or name the bf16 base",
        )
    return model.float().requires_grad_(True)


def save_full(model: Any, out: Path, *, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the whole trained model to `out`: fp32 safetensors, config and generation config. `weights`: as `save` has it.

    Raises:
        FidelityError: a weight is NaN or infinite; nothing is written.
    """
    _require_finite(_learning(model) if weights is None else weights, "model")
    model.config.dtype = torch.float32
    model.save_pretrained(out, state_dict=weights)


def trainable_parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _checked_targets(model: Any, targets: Targets) -> str | list[str]:
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    known = ", ".join(_last_parts(layers))
    if isinstance(targets, str):
        if not layers:
            raise UsageError(
                "this model has no linear layer that an adapter could go on", code="LK0407", next="set finetune.method=full"
            )
        return targets
    missing = [target for target in targets if not any(_names(target, name) for name in layers)]
    if missing or not targets:
        what = f"lora.targets names no linear layer of this model: {', '.join(missing)}" if missing else "lora.targets is empty"
        raise UsageError(what, code="LK0407", next=f"choose among {known}, or all-linear")
    return list(targets)


def _checked_modules(model: Any, shape: Shape) -> list[str]:
    """The full names of the modules to save. peft would match "norm" to every name that ends in it."""
    able = {
        name: module
        for name, module in model.named_modules()
        if name and (own := list(module.parameters(recurse=False))) and all(weight.is_floating_point() for weight in own)
    }
    head = model.get_output_embeddings()
    found: list[str] = []
    for wanted in shape.modules_to_save:
        matches = [name for name in able if _names(wanted, name)]
        if not matches:
            raise UsageError(
                f"lora.modules_to_save names no module with weights of its own: {wanted}",
                code="LK0407",
                next=f"choose among {', '.join(_last_parts(able))}",
            )
        both = [name for name in matches if _is_target(able[name], name, shape.targets) and able[name] is not head]
        if both:
            raise UsageError(
                f"{both[0]} is in lora.modules_to_save and in lora.targets",
                code="LK0407",
                next="train it whole or by an adapter: take it out of one; all-linear takes every linear layer but the head",
            )
        found += matches
    return sorted(set(found))


def _is_target(module: Any, name: str, targets: Targets) -> bool:
    if not isinstance(module, torch.nn.Linear):
        return False
    return isinstance(targets, str) or any(_names(target, name) for target in targets)


def _tied_modules(model: Any) -> set[str]:
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return {name.rpartition(".")[0] for name in [*tied, *tied.values()]}


def _names(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _last_parts(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _start_from(wrapped: Any, init: Path, shape: Shape) -> None:
    """Load the weights of the adapter in `init`, which must have the shape of the one that `wrapped` carries."""
    adapter = delta.read(init)
    fresh = {name for name, module in wrapped.get_base_model().named_modules() if hasattr(module, "lora_A")}
    saved = {name for name, module in wrapped.get_base_model().named_modules() if hasattr(module, "modules_to_save")}
    compared = {
        "rank": (adapter.rank, shape.rank),
        "alpha": (adapter.alpha, shape.alpha),
        "rslora": (adapter.rslora, shape.rslora),
        "dora": (adapter.dora, shape.dora),
        "targets": (_last_parts(sorted(adapter.factors)), _last_parts(sorted(fresh))),
        "layers": (len(adapter.factors), len(fresh)),
        "modules_to_save": (adapter.saved_modules, sorted(saved)),
    }
    differ = [f"{name} {theirs} there, {ours} here" for name, (theirs, ours) in compared.items() if theirs != ours]
    if differ:
        raise UsageError(
            f"the adapter to start from has another shape: {'; '.join(differ)}",
            code="LK0407",
            where=str(init),
            next="set finetune.lora to its shape, or start afresh",
        )
    adapted.load(wrapped, adapter, name=_NAME)


def _round_frozen(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad and module.weight.is_floating_point():
            # A new parameter: the head may share its weight with the embedding, which stays fp32.
            module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)


def _learning(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _require_finite(weights: Mapping[str, torch.Tensor], what: str) -> None:
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise FidelityError(
            f"{len(broken)} {what} weights are not finite, the first {broken[0]}; the {what} was not written", code="LK0319"
        )


def _sort_sets(path: Path) -> None:
    """peft writes sets in hash order, which differs from run to run."""
    config = json.loads(path.read_text("utf-8"))
    write_json(
        path,
        {key: sorted(value) if key in _SETS and isinstance(value, list) else value for key, value in config.items()},
    )
