"""The safetensors files of a model folder, one tensor at a time. Knows names and shapes; nothing of what they mean."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llmkit.errors import DataError
from llmkit.gguf.tokenizer import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")


class Weights:
    """Maps tensor names to files, opens each file once and reads nothing until asked."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder holds no readable safetensors, or its index is damaged or leads elsewhere."""
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._files = self._locate()

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises DataError for a tensor that is missing or holds no plain floats."""
        part = self._slice(name)
        if part.get_dtype() not in _FLOATS:
            raise DataError(
                f"tensor {name} holds {part.get_dtype()}, not {', '.join(_FLOATS)}",
                where=str(self._folder),
                next="export the merged model, not a quantized one",
            )
        return tuple(part.get_shape())

    def read(self, name: str) -> torch.Tensor:
        self._slice(name)
        return self._handle(self._files[name]).get_tensor(name)

    def _locate(self) -> dict[str, str]:
        if (self._folder / _SINGLE).is_file():
            return dict.fromkeys(self._handle(_SINGLE).keys(), _SINGLE)
        if not (self._folder / _INDEX).is_file():
            raise DataError("the model folder has no safetensors weights", where=str(self._folder), next=f"expected {_SINGLE}")
        listed = read_json(self._folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) and _plain(file) for file in listed.values()):
            raise DataError("the safetensors index is damaged or leads out of its folder", where=str(self._folder / _INDEX))
        return listed

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise DataError(f"cannot read the weights: {error}", where=str(self._folder / file)) from None
        return self._open[file]

    def _slice(self, name: str) -> Any:
        try:
            return self._handle(self._files[name]).get_slice(name)
        except (KeyError, SafetensorError):
            raise DataError(f"the weights have no tensor {name}", where=str(self._folder)) from None


def _plain(file: str) -> bool:
    return Path(file).name == file and file not in ("", ".", "..")
