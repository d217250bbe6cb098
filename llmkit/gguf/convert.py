"""A model folder → GGUF files, one a type, in one pass over the weights. Knows how the parts meet; tables stand beside it."""

import os
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from llmkit.errors import DataError, MachineError
from llmkit.gguf import architectures, header, tokenizer, writing
from llmkit.gguf.architectures import Architecture, Array, ModelConfig, Transform
from llmkit.gguf.header import Slot
from llmkit.gguf.imatrix import Imatrix
from llmkit.gguf.tokenizer import TokenizerFiles, read_json
from llmkit.gguf.types import Choice, FileType, ModelShape, assign, file_type
from llmkit.gguf.weights import Stored, Weights
from llmkit.gguf.writing import Source, Target
from llmkit.progress import note

_ROOM = 1 << 26  # bytes that a disk must have left over


class ExportFacts(TypedDict):
    """`types`: GGML type → tensors; `fallback_tensors`: those whose row size forced another type than planned."""

    type: str
    architecture: str
    files: list[str]
    bytes: int
    tensors: int
    parameters: int
    fallback_tensors: int
    bits_per_weight: float
    types: dict[str, int]
    warnings: list[str]


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the model: `stored` in its files, or computed, as `ready` is. `shape` is HF's."""

    gguf: str
    shape: tuple[int, ...]
    hf: str = ""
    stored: Stored | None = None
    transform: Transform | None = None
    ready: Array | None = None


@dataclass(frozen=True)
class Model:
    """What a model folder holds, as GGUF sees it. Headers are read, weights are not."""

    folder: Path
    architecture: Architecture
    config: ModelConfig
    tensors: tuple[_Tensor, ...]

    @staticmethod
    def read(folder: Path) -> "Model":
        """Raises UsageError for an architecture that is not supported, DataError for a file that is missing or damaged."""
        architecture, config = architectures.parse(read_json(folder / "config.json"), where=str(folder))
        return Model(folder, architecture, config, tuple(_tensors(architecture, config, Weights(folder), where=str(folder))))

    @cached_property
    def keys(self) -> architectures.Metadata:
        return self.architecture.metadata(self.config)

    @property
    def parameters(self) -> int:
        return sum(_count(tensor.shape) for tensor in self.tensors if tensor.hf)

    def choices(self, chosen: FileType, known: Container[str] = ()) -> list[Choice]:
        """The GGML type of each tensor. Raises UsageError where one needs an importance that is not among the `known`."""
        shape = ModelShape(
            self.architecture.name,
            self.config.num_hidden_layers,
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
            self.architecture.tied(self.config),
        )
        return assign(chosen, [(tensor.gguf, tensor.shape) for tensor in self.tensors], shape, imatrix=known)


@dataclass(frozen=True)
class _File:
    """One file to write: its path, the bytes before its tensors, where each lies, and its size."""

    path: Path
    opening: bytes
    slots: tuple[Slot, ...]
    size: int


def export(model_dir: Path, out: Path, *, type: str, template: str, name: str, **options: Any) -> ExportFacts:
    """One type, as `export_types`."""
    return export_types(model_dir, {type: out}, template=template, name=name, **options)[type]


def export_types(
    model_dir: Path,
    outs: Mapping[str, Path],
    *,
    template: str,
    name: str,
    tokenizer_dir: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    imatrix: Imatrix | None = None,
    pre: str | None = None,
    max_shard_bytes: int | None = None,
    workers: int | None = None,
) -> dict[str, ExportFacts]:
    """Write the model in `model_dir` (config, safetensors, tokenizer files) as GGUF, reading its weights once.

    Args:
        model_dir: a Hugging Face model folder.
        outs: for each type (a key of `types.TYPES`) the file to write.
        template: the chat template's Jinja text ("" for none).
        name: general.name.
        tokenizer_dir: where the tokenizer files are, if not in `model_dir`.
        metadata: more keys, such as general.license.
        imatrix: the importance of each weight's columns, for the types that can use it.
        pre: llama.cpp's name of the pre-tokenizer, where it cannot be told from tokenizer.json.
        max_shard_bytes: a longer file is split into NAME-00001-of-0000N.gguf, as llama-gguf-split does; a tensor stays whole.
        workers: processes; None: one for each processor. How many changes no byte.

    Raises:
        UsageError: an architecture, tokenizer or type that is not supported, or an importance matrix that is needed.
        DataError: a file of the folder is missing or damaged, or a weight is not finite.
        MachineError: the disk has no room for them, or they cannot be written.
    """
    model = Model.read(model_dir)
    parsed = TokenizerFiles.read(tokenizer_dir or model_dir)
    vocabulary = tokenizer.metadata(parsed, rows=model.config.vocab_size, template=template, pre=pre)
    warnings = [*model.architecture.warnings(model.config), *tokenizer.warnings(parsed, pre=pre)]
    for warning in warnings:
        note(warning)
    known = imatrix.names if imatrix else ()
    choices = {kind: model.choices(file_type(kind), known) for kind in outs}
    name = tokenizer.general_name(parsed, name)
    files: dict[str, list[_File]] = {}
    for kind, out in outs.items():
        keys = _metadata(model, file_type(kind), name=name, vocabulary=vocabulary, imatrix=imatrix, more=metadata or {})
        files[kind] = _lay_out(out, keys, model, choices[kind], max_shard_bytes)
    del vocabulary, parsed  # as large as a small model
    everything = [file for those in files.values() for file in those]
    _demand_room(everything)
    try:
        _write(model, everything, imatrix, workers=workers or _processors())
    except BaseException as error:
        for file in everything:
            file.path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MachineError(
                f"cannot write the GGUF file: {error}", code="LK0903", where=str(everything[0].path.parent)
            ) from None
        raise
    return {kind: _facts(model, file_type(kind), choices[kind], files[kind], warnings) for kind in outs}


def size_of(model: Model, kind: str, imatrix: Imatrix | None = None) -> int:
    """Bytes of the tensors of the file that `kind` would make.

    Raises:
        UsageError: no such type, or an importance matrix is needed.
    """
    chosen = model.choices(file_type(kind), imatrix.names if imatrix else ())
    return sum(_bytes(tensor.shape, choice.type) for tensor, choice in zip(model.tensors, chosen, strict=True))


def by_size(model: Model, kinds: Sequence[str], imatrix: Imatrix | None = None) -> list[str]:
    """`kinds`, the one that makes the smallest file first; of those that come to the same types for this model, the first."""
    known = imatrix.names if imatrix else ()
    distinct = {tuple(choice.type for choice in model.choices(file_type(kind), known)): kind for kind in reversed(kinds)}
    return sorted(distinct.values(), key=lambda kind: (size_of(model, kind, imatrix), kinds.index(kind)))


def share_on_grid(model: Model, kind: str, grid: Mapping[str, str], *, guided: bool = False) -> float:
    """The share of the layers' weights that `kind` would round to the type they were unpacked from.

    `grid`: GGML type by HF name; `guided`: there will be an importance matrix of all layers. Rounding to the
    same blocks gives the same values back, and takes a small change away.
    """
    known = {tensor.gguf for tensor in model.tensors} if guided else ()
    layers = [
        (_count(tensor.shape), choice.type.name == grid.get(tensor.hf))
        for tensor, choice in zip(model.tensors, model.choices(file_type(kind), known), strict=True)
        if tensor.gguf.startswith("blk.") and len(tensor.shape) > 1
    ]
    return sum(count for count, same in layers if same) / sum(count for count, _ in layers)


def _tensors(architecture: Architecture, config: ModelConfig, weights: Weights, *, where: str) -> Iterator[_Tensor]:
    names = weights.names
    expected = architecture.tensors(config)
    ignored = {tensor.hf for tensor in expected} | {"lm_head.weight"}
    unknown = sorted(name for name in names - ignored if not name.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise DataError(
            f"{architecture.name} has no place for these tensors: {', '.join(unknown[:3])}", code="LK0614", where=where
        )
    for tensor in expected:
        if not tensor.required and tensor.hf not in names:
            continue
        stored = weights[tensor.hf]
        if stored.shape != tensor.shape:
            raise DataError(
                f"tensor {tensor.hf} has shape {stored.shape}, config.json says {tensor.shape}", code="LK0614", where=where
            )
        yield _Tensor(tensor.gguf, stored.shape, tensor.hf, stored, tensor.transform)
    for name, ready in architecture.computed(config).items():
        yield _Tensor(name, tuple(ready.shape), ready=ready)


def _metadata(
    model: Model,
    chosen: FileType,
    *,
    name: str,
    vocabulary: Mapping[str, Any],
    imatrix: Imatrix | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    prefix = model.architecture.name
    return {
        "general.architecture": prefix,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(chosen.code),
        **{f"{prefix}.{key}": value for key, value in model.keys.items()},
        **vocabulary,
        **({"quantize.imatrix.entries_count": len(imatrix.names)} if imatrix else {}),
        **more,
    }


def _lay_out(
    out: Path, keys: Mapping[str, Any], model: Model, choices: Sequence[Choice], max_shard_bytes: int | None
) -> list[_File]:
    groups: list[list[Slot]] = [[]]
    for tensor, choice in zip(model.tensors, choices, strict=True):
        offset = _end(groups[-1])
        if groups[-1] and max_shard_bytes and offset + _bytes(tensor.shape, choice.type) > max_shard_bytes:
            groups.append([])
            offset = 0
        groups[-1].append(Slot(tensor.gguf, tensor.shape, choice.type, offset))
    files = []
    for index, slots in enumerate(groups):
        path, own = out, dict(keys)
        if len(groups) > 1:
            path = out.with_name(f"{out.stem}-{index + 1:05}-of-{len(groups):05}.gguf")
            own = {
                **(keys if index == 0 else {}),
                "split.no": np.uint16(index),
                "split.count": np.uint16(len(groups)),
                "split.tensors.count": np.int32(len(model.tensors)),
            }
        opening = header.encode(own, slots)
        files.append(_File(path, opening, tuple(slots), len(opening) + _end(slots)))
    return files


def _end(slots: Sequence[Slot]) -> int:
    return header.aligned(slots[-1].offset + _bytes(slots[-1].shape, slots[-1].type)) if slots else 0


def _demand_room(files: Sequence[_File]) -> None:
    folder = files[0].path.parent
    needed, free = sum(file.size for file in files) + _ROOM, shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"the GGUF files need {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free",
            code="LK0902",
            where=str(folder),
            next="free some, or export fewer or smaller types",
        )


def _write(model: Model, files: Sequence[_File], imatrix: Imatrix | None, *, workers: int) -> None:
    targets: dict[str, list[Target]] = {}
    for file in files:
        with file.path.open("wb") as stream:
            stream.write(file.opening)
            stream.truncate(file.size)
        for slot in file.slots:
            importance = imatrix.importance(slot.name) if imatrix else None
            targets.setdefault(slot.name, []).append(Target(file.path, len(file.opening) + slot.offset, slot.type, importance))
    large = []
    for tensor in model.tensors:
        if tensor.stored is None or len(tensor.shape) == 1 or (tensor.transform and not tensor.transform.moves):
            for target in targets[tensor.gguf]:
                _write_whole(_ready(tensor, model.keys), target)
            continue
        order = tensor.transform.forward(np.arange(tensor.shape[0]), model.keys) if tensor.transform else None
        large.append(Source(tensor.hf, tensor.stored, order, tuple(targets[tensor.gguf])))
    writing.write(large, workers=workers, title=f"writing {', '.join(file.path.name for file in files)}")


def _ready(tensor: _Tensor, keys: architectures.Metadata) -> Array:
    """A tensor that is computed or small, float32 as it is written."""
    if tensor.ready is not None:
        return tensor.ready
    assert tensor.stored
    weight = writing.read_whole(tensor.stored)
    writing.check(weight, tensor.hf, f16=False)
    return tensor.transform.forward(weight, keys) if tensor.transform else weight


def _write_whole(weight: Array, target: Target) -> None:
    assert target.type is GGMLQuantizationType.F32
    with target.path.open("r+b") as stream:
        stream.seek(target.offset)
        stream.write(np.ascontiguousarray(weight, np.float32).data)


def _processors() -> int:
    """Those that this process may use; macOS does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _facts(
    model: Model, chosen: FileType, choices: Sequence[Choice], files: Sequence[_File], warnings: list[str]
) -> ExportFacts:
    return {
        "type": chosen.name,
        "architecture": model.architecture.name,
        "files": [file.path.name for file in files],
        "bytes": sum(file.size for file in files),
        "tensors": len(choices),
        "parameters": model.parameters,
        "fallback_tensors": sum(choice.fell_back for choice in choices),
        "bits_per_weight": round(8 * sum(_end(file.slots) for file in files) / model.parameters, 3),
        "types": dict(Counter(choice.type.name for choice in choices)),
        "warnings": warnings,
    }


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    return _count(shape[:-1]) * writing.row_size(shape[-1], kind)
