"""How much memory this process has needed. Knows the operating systems; nothing of models."""

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
