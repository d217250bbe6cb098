"""What this machine has: memory, processors, GPUs, disk. Knows operating systems; imports no torch, and asks no network."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]

# As engine/precision, which needs torch: what a processor calls its bf16 multiplication.
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_SMI_SECONDS = 5
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """Bytes, all of them. `limited`: a container allows less memory than the machine has."""

    memory: int
    memory_free: int
    limited: bool
    processors: int
    gpus: tuple[Gpu, ...]
    bf16: bool
    disk_free: int

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What `precision: auto` becomes here; GPUs from 2020 on multiply in bf16."""
        return "bf16" if self.gpus or self.bf16 else "fp32"

    @property
    def room(self) -> int:
        """What a model may take: the first GPU's memory, or this machine's."""
        return self.gpus[0].free if self.gpus else self.memory_free


def look(folder: Path, *, cgroups: Path = Path("/sys/fs/cgroup"), cpuinfo: Path = _CPUINFO) -> Machine:
    """`folder`: where results go; it need not exist yet."""
    memory = psutil.virtual_memory()
    limit = _limit(cgroups)
    total, free = int(memory.total), int(memory.available)
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, max(0, limit[0] - limit[1]))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        memory=total,
        memory_free=free,
        limited=total < memory.total,
        processors=processors,
        gpus=_gpus(),
        bf16=bool(flags(cpuinfo) & _BF16),
        disk_free=shutil.disk_usage(_existing(folder)).free,
    )


def _limit(root: Path) -> tuple[int, int] | None:
    """A control group's limit and what of it is used, version 2 or 1; None where there is none."""
    for limit, used in _CGROUPS:
        try:
            return int((root / limit).read_text("ascii")), int((root / used).read_text("ascii"))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


@cache
def _gpus() -> tuple[Gpu, ...]:
    """By NVIDIA's own tool; none where it is missing or silent."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    asked = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout  # noqa: S603 - a fixed command
        rows = [line.rsplit(",", 2) for line in told.splitlines() if line.strip()]
        return tuple(Gpu(name.strip(), int(total) * 2**20, int(free) * 2**20) for name, total, free in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def flags(cpuinfo: Path = _CPUINFO) -> set[str]:
    """What the processor can do, in Linux' own words; empty elsewhere."""
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
