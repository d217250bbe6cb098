"""What these tests share: shapes of known models, and worlds to plan in."""

from typing import Any

from llmkit.planning import config, shapes
from llmkit.planning.machine import Gpu, Machine
from llmkit.planning.shapes import Shape
from llmkit.planning.steps import World
from llmkit.steps import finetune

GB = 10**9
COPIES = sorted({*config.COPIES.values(), "SmolLM2-135M"})


def copy_of(name: str) -> dict[str, Any]:
    return dict(config.read(config.FOLDER / f"{name}.json"))


def shape_of(name: str) -> Shape:
    return shapes.of_config(copy_of(name), where=name)


def machine(*, memory: int = 64 * GB, gpu: int = 0, disk: int = 10**13, bf16: bool = True) -> Machine:
    """With so much of everything free."""
    gpus = (Gpu("GPU", gpu, gpu),) if gpu else ()
    return Machine(memory, memory, limited=False, processors=4, gpus=gpus, bf16=bf16, disk_free=disk)


def world(name: str, **of_machine: Any) -> World:
    return World(shape_of(name), machine(**of_machine))


def training(**settings: Any) -> dict[str, Any]:
    """finetune's settings as its configuration dumps them."""
    return finetune.Config(**settings).model_dump(mode="json")
