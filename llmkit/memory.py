"""How much memory this process has needed, and how it gives some back. Knows operating systems; nothing of models."""

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """This process's largest resident set so far; 0 where the system does not tell."""
    # Linux first, and not by getrusage: that one still counts the parent this process was forked from.
    if _STATUS.exists():
        return int(_STATUS.read_text("ascii", "replace").split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_early(bytes_from: int = 1_000_000) -> None:
    """From now on, let a block of at least `bytes_from` go back to the system as it is freed.

    glibc raises that mark to 32 MB by itself, and then keeps what it frees: activations of changing sizes leave holes,
    a tenth of training's peak. On other systems this does nothing.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(-3, bytes_from)  # M_MMAP_THRESHOLD
