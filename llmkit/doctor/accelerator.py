"""torch, the GPU that it sees, and bitsandbytes on it. Imports them: run in a process of its own."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.doctor.finding import Finding
from llmkit.planning import machine

_BUILDS = "pytorch.org/get-started names the command for each"


def torch_and_gpu(folder: Path) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:  # said already, among the packages
        return
    import torch

    seen = machine.look(folder).gpus
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    if torch.cuda.is_available():
        yield from _gpus(torch, kind)
    elif seen and kind == "CPU":
        yield Finding(
            "warning",
            "GPU",
            f"{seen[0].name}, and a build of torch {torch.__version__} that knows none",
            "everything runs on the processor, many times slower",
            f"pip uninstall torch, then install its CUDA build ({_BUILDS})",
        )
    elif seen:
        yield Finding(
            "warning",
            "GPU",
            f"{seen[0].name}, and torch {torch.__version__} ({kind}) cannot use it: {_why(torch)}",
            "most often the driver is older than the CUDA that torch was built for",
            f"update the driver, or install a build of torch for an older CUDA ({_BUILDS})",
        )
    elif torch.backends.mps.is_available():
        yield Finding(
            "ok",
            "GPU",
            f"Apple's GPU (MPS), torch {torch.__version__}",
            "bitsandbytes cannot quantize on it; GGUF files run on it",
        )
    elif kind != "CPU":
        yield Finding(
            "note",
            "GPU",
            f"no GPU, and torch {torch.__version__} for {kind}",
            "it works on the processor; its CPU build is some gigabytes smaller",
            f"pip uninstall torch, then install its CPU build ({_BUILDS})",
        )
    else:
        yield Finding("ok", "GPU", f"none; torch {torch.__version__} on the processor")


def _gpus(torch: Any, kind: str) -> Iterator[Finding]:
    built = set(torch.cuda.get_arch_list())
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        arch = f"sm_{card.major}{card.minor}"
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: precision: auto takes fp32"
        told = (
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}, {bf16}; torch for {kind}"
        )
        older = [one for one in built if one.startswith(f"sm_{card.major}") and one <= arch]
        if torch.version.cuda and built and not older and f"compute_{card.major}{card.minor}" not in built:
            yield Finding(
                "warning",
                "GPU",
                told,
                f"this torch was built for {', '.join(sorted(built))}",
                f"install another build of torch ({_BUILDS})",
            )
        else:
            yield Finding("ok", "GPU", told)


def _why(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0][:200]
    return "it does not say why"


def bitsandbytes(folder: Path) -> Iterator[Finding]:
    """A few weights there and back: that it imports tells little."""
    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("torch") is None:
        return
    mend = "pip install -U bitsandbytes"
    try:
        import torch

        # Loading torch's compiler takes longer than all else here, and nothing of it is used.
        torch.compile = _uncompiled  # type: ignore[assignment]
        from bitsandbytes import functional

        device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
        packed, state = functional.quantize_4bit(weights, quant_type="nf4")
        back = functional.dequantize_4bit(packed, state)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        what = f"bitsandbytes fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        yield Finding("error", "bitsandbytes", what, "no INT8, no 4-bit, no qlora", mend)
        return
    worst = float((back - weights).abs().max())
    if worst > 0.2:  # NF4's widest gap is 0.28 of the block's largest value
        yield Finding(
            "error", "bitsandbytes", f"it quantizes wrongly: off by {worst:.2f}", "no 4-bit weight can be trusted", mend
        )
    else:
        yield Finding("ok", "bitsandbytes", f"quantizes to 4 bits on {device}")


def _uncompiled(function: Any = None, **options: Any) -> Any:
    return function or _uncompiled


PROBES = (torch_and_gpu, bitsandbytes)
