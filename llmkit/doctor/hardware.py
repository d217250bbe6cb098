"""Processor, memory, and whether programs can be locked in. Knows what each means for llmkit; imports no torch."""

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

from llmkit.doctor.finding import Finding
from llmkit.errors import MachineError
from llmkit.planning import machine

# Instruction sets by what /proc/cpuinfo calls them, and what we call them.
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "i8mm": "I8MM",
    "bf16": "BF16",
}
_LITTLE_MEMORY = 4 * 2**30


def processor(folder: Path) -> Iterator[Finding]:
    flags = machine.flags()
    sets = [shown for flag, shown in _SETS.items() if flag in flags]
    seen = machine.look(folder)
    yield Finding(
        "ok",
        "processor",
        f"{_name()}, {seen.processors} cores for this process{_quota()}; {', '.join(sets) or platform.machine()}",
    )
    if platform.machine().lower() in ("x86_64", "amd64") and flags and "avx2" not in flags:
        yield Finding(
            "error",
            "processor",
            "no AVX2",
            "torch and llama.cpp are built for it: they crash or crawl",
            "use another machine, or give the virtual machine a newer processor type (host passthrough)",
        )
    if not seen.gpus and flags:
        means = "trains in bf16, twice as fast as fp32" if seen.bf16 else "trains in fp32; bf16 would be emulated and slower"
        yield Finding("ok", "processor", f"precision: auto {means}")


def memory(folder: Path) -> Iterator[Finding]:
    seen = machine.look(folder)
    limit = ", as much as this container may use" if seen.limited else ""
    told = f"{seen.memory / 2**30:.1f} GiB{limit}; {seen.memory_free / 2**30:.1f} GiB free"
    if seen.memory_free < _LITTLE_MEMORY:
        means = "a fine-tune of the demo model needs about 3 GiB"
        yield Finding("warning", "memory", told, means, "close other programs; `llmkit plan RECIPE` says what each step needs")
    else:
        yield Finding("ok", "memory", told)


def sandbox(folder: Path) -> Iterator[Finding]:
    from llmkit import sandbox as jail

    try:
        strongest = jail.isolation()
    except MachineError as error:
        yield Finding("note", "sandbox", error.what, "eval.code cannot run here; nothing else needs it", error.next)
        return
    if strongest == "namespaces":
        yield Finding("ok", "sandbox", "programs that a model writes run without files and network (namespaces)")
        return
    yield Finding(
        "note",
        "sandbox",
        "user namespaces are forbidden",
        "with --allow-code-exec, a program that a model writes can read your files, but write none and use no network",
        "on Ubuntu: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a container: run it with user namespaces",
    )


def _name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False).stdout.strip()  # noqa: S603 - fixed
    return platform.processor() or platform.machine()


def _quota() -> str:
    """What a container's quota leaves of the cores."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # absent, or "max"
        return ""
    return f" (a quota of {cores:g})" if cores < (os.cpu_count() or 1) else ""


PROBES = (processor, memory, sandbox)
