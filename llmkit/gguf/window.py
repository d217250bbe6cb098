"""How many tokens of context a GGUF file's model can be given here. Knows headers and memory; loads nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from llmkit.errors import UsageError
from llmkit.gguf import container

LONGEST = 4096  # tokens of context where nobody asks for more: memory is set aside for all of it
SHORTEST = 256
_SHARE = 0.5  # of what is free: weights are mapped and count as free, and others take memory too
_F16, _F32 = 2, 4


def fitting_context(path: Path, *, asked: int | None, slots: int, exact: bool) -> int:
    """Tokens that each of `slots` answers and its prompt may take: what is asked for, or what the memory that is free holds.

    `exact`: keys and values are kept in fp32. Raises:
        UsageError: more than the model was trained on, or than fits in memory.
        DataError: the file is no GGUF file.
    """
    metadata = container.open_split(path)[0].metadata
    name = metadata.get("general.architecture")
    trained = _number(metadata.get(f"{name}.context_length"))
    if asked and trained and asked > trained:
        raise UsageError(
            f"a context of {asked} tokens is asked for, and the model was trained on {trained}",
            code="LK0806",
            where=str(path),
            next=f"ask for {trained} or less",
        )
    fits = _free() // (slots * max(1, _token_bytes(metadata, str(name), _F32 if exact else _F16)))
    if asked and asked > fits:
        raise UsageError(
            f"{slots} answers at once, each with a context of {asked} tokens, do not fit in memory",
            code="LK0806",
            where=str(path),
            next=f"ask for {max(SHORTEST, fits // SHORTEST * SHORTEST)} tokens, or for fewer answers at once",
        )
    size = asked or min(trained or LONGEST, LONGEST)
    return size if size <= fits else max(SHORTEST, fits // SHORTEST * SHORTEST)


def _free() -> int:
    return int(psutil.virtual_memory().available * _SHARE)


def _token_bytes(metadata: Mapping[str, Any], name: str, width: int) -> int:
    """A token's keys and values in all layers, as if none had a window; 0 where the header does not say."""
    layers, heads, hidden = (
        _number(metadata.get(f"{name}.{key}")) for key in ("block_count", "attention.head_count", "embedding_length")
    )
    if not heads:
        return 0
    cached = _number(metadata.get(f"{name}.attention.head_count_kv")) or heads
    sizes = [_number(metadata.get(f"{name}.attention.{key}")) or hidden // heads for key in ("key_length", "value_length")]
    return layers * cached * sum(sizes) * width


def _number(found: object) -> int:
    """A list, a number for each layer, counts as its largest; what is none as 0."""
    if isinstance(found, (list, tuple)):
        found = max((one for one in found if isinstance(one, int)), default=0)
    return found if isinstance(found, int) and found > 0 else 0
