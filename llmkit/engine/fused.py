"""A frozen linear layer and its LoRA as one operation. Knows peft's layers; nothing of models or trainers.

peft adds a cast, two products, a scaling and a sum to each layer, each with its own memory and its own backward pass.
Here the low-rank product is added into the layer's own, and the layers that read one input keep one copy of it.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


@contextmanager
def fused(model: Any) -> Iterator[int]:
    """Let each plain LoRA layer of `model` work in one operation; how many do. Others (DoRA, dropout, 4-bit) stay peft's."""
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    inputs = _Inputs()
    for layer in layers:
        layer.forward = partial(_forward, layer, inputs)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    """One LoRA without dropout on a frozen linear layer, and nothing besides."""
    if not isinstance(layer, LoraLinear) or type(layer.base_layer) is not nn.Linear or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not layer.base_layer.weight.requires_grad
    )


class _Inputs:
    """The last input in the type that products are made in: query, key and value, or gate and up, read the same one."""

    def __init__(self) -> None:
        self._of: weakref.ref[Tensor] | None = None
        self._cast: weakref.ref[Tensor] | None = None

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        known = self._cast() if self._cast is not None and self._of is not None and self._of() is x else None
        if known is not None and known.dtype == dtype:
            return known
        made = x.to(dtype)
        self._of, self._cast = weakref.ref(x), weakref.ref(made)
        return made


def _forward(layer: Any, inputs: _Inputs, x: Tensor, *args: Any, **options: Any) -> Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **options)
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    base = layer.base_layer
    return _Fused.apply(x, base.weight.to(dtype), base.bias, down, up, layer.scaling[name], dtype, inputs)


class _Fused(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        dtype: torch.dtype,
        inputs: _Inputs,
    ) -> Tensor:
        flat = inputs.cast(x, dtype).flatten(0, -2)
        a, b = down.to(dtype), up.to(dtype)
        inner = flat @ a.T
        out = flat @ weight.T if bias is None else torch.addmm(bias.to(dtype), flat, weight.T)
        out.addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(flat, inner, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, down, up = ctx.saved_tensors
        grad = above[0].flatten(0, -2).to(flat.dtype)
        inner_grad = (grad @ up.to(flat.dtype)).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (grad @ weight).addmm_(inner_grad, down.to(flat.dtype)).view(ctx.shape).to(ctx.dtype)
        to_down = (inner_grad.T @ flat).to(down.dtype)
        to_up = (grad.T @ inner).mul_(ctx.scale).to(up.dtype)
        return to_x, None, None, to_down, to_up, None, None, None
