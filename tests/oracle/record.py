"""What `llama-quantize` makes of the small sources, for the tests that run without it: `python -m tests.oracle.record`."""

import json
import tempfile
from pathlib import Path

from llmkit.gguf.types import TYPES
from tests.oracle import oracle
from tests.oracle.sources import SOURCES, Source, digest

DIGESTS = Path(__file__).with_name("digests.json")
REFUSED = "needs an importance matrix"


def recorded() -> dict[str, dict[str, list[str]]]:
    """Source → type → digest without importance and with; REFUSED where there is no file."""
    found: dict[str, dict[str, list[str]]] = json.loads(DIGESTS.read_text("utf-8"))
    return found


def measured(name: str) -> dict[str, list[str]]:
    """The same, of one source, from llama.cpp."""
    source = SOURCES[name]()
    with tempfile.TemporaryDirectory() as folder:
        path = source.write(Path(folder) / "source.gguf")
        imatrix = oracle.write_imatrix(source.importance, Path(folder) / "imatrix.gguf")
        return {kind: [_digest(source, path, kind, given) for given in (None, imatrix)] for kind in TYPES}


def _digest(source: Source, path: Path, kind: str, imatrix: Path | None) -> str:
    try:
        made = oracle.quantize(path, path.with_name("out.gguf"), kind, imatrix)
    except oracle.NeedsImatrixError:
        return REFUSED
    return digest({tensor: (stored.type.name, stored.data) for tensor, stored in oracle.tensors(made).items()})


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps({name: measured(name) for name in SOURCES}, indent=1) + "\n", "utf-8")
