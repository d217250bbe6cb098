"""The tiny models of `families.py`, built once a session, and their GGUF files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gguf.families import CHATML, FAMILIES, GEMMA, INST, LINES, load_hf

__all__ = ["CHATML", "GEMMA", "INST", "LINES", "load_hf"]


class _ModelDirs(dict[str, tuple[Path, str]]):
    """Family → (folder, chat template); a folder is built when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, family: str) -> tuple[Path, str]:
        entry = FAMILIES[family]
        self[family] = (entry.build(self._folder / family), entry.template)
        return self[family]


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Family → (folder, chat template), for every key of `families.FAMILIES`."""
    return _ModelDirs(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def llama3_dir(model_dirs: dict[str, tuple[Path, str]]) -> Path:
    return model_dirs["llama3"][0]


@pytest.fixture(scope="session")
def mistral_dir(model_dirs: dict[str, tuple[Path, str]]) -> Path:
    return model_dirs["mistral"][0]


@pytest.fixture(scope="session")
def gemma_dir(model_dirs: dict[str, tuple[Path, str]]) -> Path:
    return model_dirs["gemma3"][0]


@pytest.fixture(scope="session")
def exported(model_dirs: dict[str, tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported("gemma3", "q8_0")`: the GGUF file, made once."""
    from llmkit.gguf.convert import export

    folder = tmp_path_factory.mktemp("gguf")

    def make(family: str, kind: str) -> Path:
        out = folder / f"{family}-{kind}.gguf"
        if not out.exists():
            model_dir, template = model_dirs[family]
            export(model_dir, out, type=kind, template=template, name=family, metadata={})
        return out

    return make
