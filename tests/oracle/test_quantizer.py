"""Real models in every type, byte for byte as `llama-quantize` writes them from the same f16 file."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from llmkit.errors import UsageError
from llmkit.gguf.encode import encode
from llmkit.gguf.types import TYPES, Choice, ModelShape, assign, file_type
from tests.oracle import oracle

pytestmark = pytest.mark.slow
Array = np.ndarray[Any, Any]
MODELS = {
    "smollm2": ModelShape("llama", 30, 9, 3, tied=True),
    "gemma_270m": ModelShape("gemma3", 18, 4, 1, tied=True),
}
_DTYPES = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
_CHUNK = 1 << 22  # elements


class Original:
    """A model's f16 file, an importance matrix of random positive numbers, and the digests of what we made of both."""

    def __init__(self, model_dir: Path, folder: Path, model: ModelShape) -> None:
        self.model = model
        self.path = oracle.convert(model_dir, folder / "f16.gguf", "f16")
        self.tensors = oracle.tensors(self.path)
        random = np.random.default_rng(0)
        blocks = [(name, stored.shape[-1]) for name, stored in self.tensors.items() if name.startswith("blk.")]
        self.importance = {name: random.lognormal(sigma=2, size=width).astype(np.float32) for name, width in blocks}
        self.imatrix = oracle.write_imatrix(self.importance, folder / "imatrix.gguf")
        self.digest = cache(self._digest)

    def choices(self, kind: str, *, guided: bool) -> list[Choice]:
        names = self.importance if guided else ()
        return assign(
            file_type(kind), [(name, stored.shape) for name, stored in self.tensors.items()], self.model, imatrix=names
        )

    def _digest(self, name: str, kind: GGMLQuantizationType, guided: bool) -> str:
        """Of one tensor in one type, which most file types share; in pieces, as the embedding is large."""
        stored = self.tensors[name]
        rows = stored.data.view(_DTYPES[stored.type]).reshape(-1, stored.shape[-1])
        weights = self.importance.get(name) if guided else None
        step = max(1, _CHUNK // rows.shape[1])
        pieces = (rows[start : start + step].astype(np.float32) for start in range(0, len(rows), step))
        whole = sha256()
        for piece in pieces:
            whole.update(encode(piece, kind, weights))
        return whole.hexdigest()


@pytest.fixture(scope="module")
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Original]:
    @cache
    def make(name: str) -> Original:
        return Original(request.getfixturevalue(name), tmp_path_factory.mktemp(name), MODELS[name])

    return make


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
def test_every_tensor_is_llama_quantize_s(
    name: str, kind: str, guided: bool, original: Callable[[str], Original], tmp_path: Path
) -> None:
    ours = original(name)
    out = tmp_path / "theirs.gguf"
    try:
        theirs = oracle.tensors(oracle.quantize(ours.path, out, kind, ours.imatrix if guided else None))
        choices = dict(zip(ours.tensors, ours.choices(kind, guided=guided), strict=True))
        assert {tensor: choice.type for tensor, choice in choices.items()} == {n: stored.type for n, stored in theirs.items()}
        assert [n for n, choice in choices.items() if ours.digest(n, choice.type, guided) != _digest(theirs[n].data)] == []
    except oracle.NeedsImatrixError:
        with pytest.raises(UsageError, match="needs an importance matrix"):
            ours.choices(kind, guided=guided)
    finally:
        out.unlink(missing_ok=True)  # 112 of them fill a disk


def _digest(data: Array) -> str:
    return sha256(data).hexdigest()
