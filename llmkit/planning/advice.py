"""What to change where a step does not fit. Knows what its settings can trade; an advice is computed before it is given."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.planning import steps
from llmkit.planning.machine import Machine
from llmkit.planning.steps import Need, Settings, World

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """`lacks`: memory or disk; `changes`: settings that make the step fit, with the `need` they leave; none: `otherwise`."""

    lacks: str
    changes: Changes
    need: Need | None
    otherwise: str = ""

    def options(self, verb: str) -> str:
        """As the command line takes them."""
        return " ".join(f"--set {verb}.{key}={_spelled(value)}" for key, value in self.changes.items())


def lacks(need: Need, machine: Machine) -> str:
    """What of this machine does not suffice: memory, disk, or nothing ("")."""
    if need.memory.required > (machine.gpus[0].free if need.on_gpu and machine.gpus else machine.memory_free):
        return "memory"
    return "disk" if need.writes + need.scratch > machine.disk_free else ""


def advise(verb: str, settings: Settings, world: World) -> Advice | None:
    """The first of the step's remedies that makes it fit; None where it fits as it is.

    Raises: as `steps.of`.
    """
    missing = lacks(steps.of(verb, settings, world), world.machine)
    if not missing:
        return None
    for changes in _REMEDIES.get((verb, missing), _none)(settings, world):
        need = steps.of(verb, {**settings, **changes}, world)
        if not lacks(need, world.machine):
            return Advice(missing, changes, need)
    return Advice(missing, {}, None, _OTHERWISE.get((verb, missing), _OTHERWISE["", missing]))


def _training(settings: Settings, world: World) -> Iterator[Changes]:
    """From what costs least: fewer records at once, bf16, a 4-bit base, shorter records."""
    share = settings["batch_size"] // settings["processes"]
    now = settings["micro_batch"] or share
    smaller = [size for size in range(now - 1, 0, -1) if settings["batch_size"] % size == 0 and share % size == 0]
    yield from ({"micro_batch": size} for size in smaller)
    one: Changes = {"micro_batch": 1}
    ways: list[Changes] = [{}]
    if settings["precision"] == "fp32" and (world.machine.bf16 or world.gpu):
        ways.append({"precision": "bf16"})
    if settings["processes"] > 1 and not world.gpu:
        ways.append({"processes": 1})
    if settings["method"] != "qlora":
        ways.append({"method": "qlora"})
        if settings["method"] == "full":
            ways.insert(1, {"method": "lora"})
    for way in ways[1:]:
        yield way
        yield {**way, **one}
    lengths = [length for length in (4096, 2048, 1024, 512, 256) if length < settings["max_length"]]
    for way in (ways[0], ways[-1]):
        yield from ({**way, **one, "max_length": length} for length in lengths)


def _answering(settings: Settings, _: World) -> Iterator[Changes]:
    now = settings["batch_size"] or steps.BATCH
    yield from ({"batch_size": size} for size in (32, 16, 8, 4, 2, 1) if size < now)


def _fewer_files(settings: Settings, _: World) -> Iterator[Changes]:
    kinds = [] if settings["types"] == "auto" else list(settings["types"])
    yield from ({"types": kinds[start:]} for start in range(1, len(kinds)))  # as they are listed: the largest first
    yield from ({"types": [kind]} for kind in kinds)
    yield {"types": ["q4_k_m"], "adapter": None}


def _rounded(settings: Settings, _: World) -> Iterator[Changes]:
    if settings["dtype"] != "bf16":
        yield {"dtype": "bf16"}


def _none(_: Settings, __: World) -> Iterator[Changes]:
    yield from ()


_REMEDIES: dict[tuple[str, str], Callable[[Settings, World], Iterator[Changes]]] = {
    ("finetune", "memory"): _training,
    ("eval", "memory"): _answering,
    ("export", "memory"): _fewer_files,
    ("export", "disk"): _fewer_files,
    ("merge", "disk"): _rounded,
}
_OTHERWISE = {
    ("", "memory"): "no setting of this step makes it fit: close other programs, or use a machine with more memory",
    ("", "disk"): "free disk, or give --workspace on a larger one",
    ("finetune", "memory"): "no setting makes this base fit: take a smaller one, or a machine with more memory",
    ("quantize", "memory"): "leave `quantize` out and export a GGUF, which needs little more memory than the file has",
    ("pairs", "memory"): "set data.pairs.rejected=shuffle, which loads no model",
}


def _spelled(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)
