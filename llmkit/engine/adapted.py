"""Base + adapters as they ran in training, the weights not merged: what a merge is compared with.

Knows peft, and forward hooks for a base that stays on disk; nothing of the merge, whose arithmetic it must not share.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import set_module_tensor_to_device
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from llmkit.engine import loading, shards
from llmkit.engine.delta import Adapter
from llmkit.engine.shards import Entry
from llmkit.errors import DataError


def by_peft(model: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """`model` with the adapters on, each scaled by its weight, in eval mode.

    The configuration is made here from checked values: a foreign one may hold a pattern to match for ever.

    Raises:
        DataError: peft finds a tensor missing or left over.
    """
    wrapped = None
    for position, (adapter, _) in enumerate(adapters):
        name = f"adapter{position}"
        if wrapped is None:
            wrapped = get_peft_model(model, _config(adapter), adapter_name=name)
        else:
            wrapped.add_adapter(name, _config(adapter))
        load(wrapped, adapter, name=name)
    assert wrapped is not None
    names = [f"adapter{position}" for position in range(len(adapters))]
    if len(names) > 1:
        wrapped.base_model.set_adapter(names)
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            for name, (_, weight) in zip(names, adapters, strict=True):
                layer.set_scale(name, weight)
    return wrapped.eval()


def load(wrapped: Any, adapter: Adapter, *, name: str) -> None:
    """Give the adapter called `name` of a peft model the weights of `adapter`.

    Raises:
        DataError: a tensor is missing, left over or of another shape.
        FidelityError: one is not finite.
    """
    state = {key: adapter.tensor(key) for key in adapter.entries}
    try:
        result = set_peft_model_state_dict(wrapped, state, adapter_name=name)
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"this adapter does not fit the model: {str(error)[:300]}", code="LK0311", where=str(adapter.path)
        ) from error
    missing = [key for key in result.missing_keys if f".{name}" in key]
    if missing or result.unexpected_keys:
        raise DataError(
            f"this adapter does not fit the model: {[*missing, *result.unexpected_keys][0]} is in only one of them",
            code="LK0311",
            where=str(adapter.path),
        )


def by_hooks(model: Any, adapters: Sequence[tuple[Adapter, float]], base: Mapping[str, Entry]) -> Any:
    """As `by_peft`, on a model whose weights accelerate reads from disk when they are used (peft cannot wrap those).

    `base` lists the tensors of `model` on disk, for DoRA's norms.
    """
    for adapter, weight in adapters:
        for module in adapter.saved_modules:
            remove_hook_from_module(model.get_submodule(module))
        for name, key in adapter.replaced.items():
            set_module_tensor_to_device(model, name, loading.device(), value=adapter.tensor(key))
        for module in adapter.factors:
            model.get_submodule(module).register_forward_hook(_hook(adapter, module, weight, base))
    return model


def _config(adapter: Adapter) -> LoraConfig:
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.factors),
        modules_to_save=adapter.saved_modules or None,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        ensure_weight_tying=adapter.tied and bool(adapter.replaced),
        task_type="CAUSAL_LM",
    )


def _hook(adapter: Adapter, module: str, weight: float, base: Mapping[str, Entry]) -> Callable[..., torch.Tensor]:
    parts = {part: adapter.tensor(key) for part, key in adapter.factors[module].items()}
    down, up = parts["lora_A"], parts["lora_B"] * (weight * adapter.scale)
    gain, bias = None, torch.zeros(())
    if adapter.dora:
        name = f"{module}.weight"
        gain = parts["lora_magnitude_vector"] / torch.linalg.norm(shards.read(base[name], name).float() + up @ down, dim=1)
        name = f"{module}.bias"
        bias = shards.read(base[name], name).float() if name in base else bias

    def add(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        device = output.device
        added = inputs[0].to(device) @ down.to(device).T @ up.to(device).T
        if gain is None:
            return output + added
        constant = bias.to(device)
        return gain.to(device) * (output - constant + added) + constant

    return add
