"""Chooses the number format of a training run. Knows processors; nothing of models."""

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's


def choose(wanted: Literal["auto", "bf16", "fp32"], *, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """`wanted`, or for `auto`: bf16 where the processor multiplies it natively, else fp32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _flags(cpuinfo) & _CPU_FLAGS else "fp32"


def _flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())
