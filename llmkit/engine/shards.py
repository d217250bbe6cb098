"""Rewrites a model's safetensors one tensor at a time, so that memory holds one tensor, never the model.

Knows the safetensors format (https://github.com/huggingface/safetensors#format) and the layout that transformers gives a
folder; nothing of what the tensors mean.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from llmkit.artifact import write_json
from llmkit.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What is rewritten, by the format's names; other float types belong to quantized models.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KEPT = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in {**FLOATS, **KEPT}.items()}
Change = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """One stored tensor: the file that holds it, its shape, its type by the format's name."""

    file: Path
    shape: tuple[int, ...]
    stored: str

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the model in `folder`, by name, from the files that transformers would read.

    Raises:
        DataError: no safetensors, an index that points elsewhere, or a broken file.
    """
    found: dict[str, Entry] = {}
    for file in _files(folder):
        found.update(header(file))
    return found


def header(file: Path) -> dict[str, Entry]:
    """Every tensor of one safetensors file, by name.

    Raises:
        DataError: the file is missing, cut short or no safetensors.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
            return {name: Entry(file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"this safetensors file cannot be read: {error}", code="LK0308", where=str(file)) from error


def read(entry: Entry, name: str) -> torch.Tensor:
    """The tensor itself. It maps its file: memory holds it only until the last use of the result.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        # Opened anew for each tensor: a mapping that lives on would keep every page it has touched.
        with safe_open(entry.file, framework="pt") as stream:
            tensor: torch.Tensor = stream.get_tensor(name)
            return tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"this safetensors file cannot be read: {error}", code="LK0308", where=str(entry.file)) from error


def rewrite(source: Path, out: Path, change: Change, *, dtype: torch.dtype) -> None:
    """Write the weights in `source` to `out`: the same names in the same files, every float tensor changed and in `dtype`.

    Args:
        source: a folder with model.safetensors, or with its index and shards.
        out: an existing folder.
        change: takes a float tensor's name and the tensor as stored, which it must not overwrite; returns a float tensor of
            the same shape.
        dtype: what float tensors become; others are copied.

    Raises:
        DataError: a file cannot be read, or holds a type that only quantized models have.
    """
    known = entries(source)
    for file in sorted({entry.file for entry in known.values()}):
        ours = {name: entry for name, entry in known.items() if entry.file == file}
        with (out / file.name).open("wb") as stream:
            _write_file(stream, ours, change, dtype=dtype)
    if not (source / WEIGHTS).exists():
        total = sum(entry.elements * _type(entry, dtype).itemsize for entry in known.values())
        files = {name: entry.file.name for name, entry in sorted(known.items())}
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError("it must name safetensors files beside it")
    except FileNotFoundError as error:
        raise DataError(f"this folder holds neither {WEIGHTS} nor {INDEX}", code="LK0308", where=str(folder)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"this weight index cannot be used: {error}", code="LK0308", where=str(folder / INDEX)) from error
    return [folder / name for name in names]


def _write_file(stream: BinaryIO, known: Mapping[str, Entry], change: Change, *, dtype: torch.dtype) -> None:
    # Widest types first, as the reference implementation does: every tensor is then aligned to its type.
    order = sorted(known, key=lambda name: (-_type(known[name], dtype).itemsize, name))
    listing: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        entry, kind = known[name], _type(known[name], dtype)
        end = offset + entry.elements * kind.itemsize
        listing[name] = {"dtype": NAMES[kind], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(listing, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        entry = known[name]
        tensor = read(entry, name)
        if entry.stored in FLOATS:
            tensor = change(name, tensor).to(dtype)
        stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        del tensor


def _type(entry: Entry, dtype: torch.dtype) -> torch.dtype:
    if entry.stored in FLOATS:
        return dtype
    if entry.stored not in KEPT:
        raise DataError(
            f"a tensor of type {entry.stored} cannot be rewritten",
            code="LK0308",
            where=str(entry.file),
            next="name the bf16 or fp32 model",
        )
    return KEPT[entry.stored]
