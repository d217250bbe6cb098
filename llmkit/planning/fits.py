"""Which precision of a model fits which device, to speak and to train. Knows devices by their memory; measures nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llmkit.planning import inference
from llmkit.planning import training as train
from llmkit.planning.peaks import Peak
from llmkit.planning.shapes import Shape

GIB = 2**30
SPEAKING = ("bf16", "int8", "nf4", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "iq3_xxs", "iq2_xxs")
Objective = Literal["sft", "orpo"]
METHODS: tuple[Literal["lora", "qlora", "full"], ...] = ("lora", "qlora", "full")


@dataclass(frozen=True)
class Device:
    """One or several alike. `usable`: the share of the memory (bytes, of one) that a model may have."""

    name: str
    memory: int
    count: int = 1
    usable: float = 0.95

    @property
    def room(self) -> int:
        return int(self.memory * self.usable)


# An edge board's memory is also its system's.
DEVICES = (
    Device("8 GB board", 8 * GIB, usable=0.8),
    Device("24 GB card", 24 * GIB),
    Device("80 GB card", 80 * GIB),
    *(Device(f"{count}×80 GB", 80 * GIB, count) for count in (2, 4, 8)),
)


def table(shape: Shape, *, context: int) -> dict[str, Any]:
    """{"devices", "inference": [row], "training": [row]}: bytes, and by device whether it fits.

    A conversation is of `context` tokens; training sees one record of that length at a time, half of it learnt (orpo: a pair
    that shares a prompt of half of it), with gradient checkpointing, bf16, and LoRA of rank 16 on all linear layers.
    """
    return {
        "devices": [{"name": one.name, "memory": one.memory, "count": one.count, "usable": one.room} for one in DEVICES],
        "inference": [_speaking(shape, kind, context) for kind in SPEAKING if shape.family or kind in _ANY],
        "training": [_training(shape, way, objective, context) for objective in get_args(Objective) for way in METHODS],
    }


_ANY = (*inference.SINGLE, *inference.BITSANDBYTES)  # what is no GGUF


def _speaking(shape: Shape, precision: str, context: int) -> dict[str, Any]:
    need = inference.need(shape, precision, context=context)
    # Layers, and their keys and values, are shared out; what passes through is in each device.
    shared = need.parts["weights"] + need.parts["KV cache"]
    return {
        "precision": precision,
        "bits_per_weight": round(8 * need.parts["weights"] / shape.parameters, 2),
        **_told(need, lambda one: -(-shared // one.count) + need.total - shared),
    }


def _training(shape: Shape, method: Literal["lora", "qlora", "full"], objective: Objective, context: int) -> dict[str, Any]:
    half = context // 2
    pair = objective == "orpo"
    load = train.Load(3 * half if pair else context, 2 * half if pair else half, 2 if pair else 1, context)

    def peak(count: int) -> Peak:
        run = train.Run(
            method, "bf16", load, checkpointing=True, gpu=True, shards=count, strategy="fsdp" if count > 1 else "ddp"
        )
        return train.peak(shape, run)

    def on(device: Device) -> int:
        # Layers in 4 bits are not shared out: each device holds them all.
        return peak(1 if method == "qlora" else device.count).total

    alone = train.Run(method, "bf16", load, checkpointing=True, gpu=True)
    phases = {one.phase: one.total for one in (train.loading(shape, alone), train.training(shape, alone))}
    return {"objective": objective, "method": method, "phases": phases, **_told(peak(1), on)}


def _told(need: Peak, on: Callable[[Device], int]) -> dict[str, Any]:
    each = {one.name: on(one) for one in DEVICES}
    fits: Mapping[str, bool] = {one.name: each[one.name] <= one.room for one in DEVICES}
    return {**need.to_json(), "on_each": each, "fits": fits}
