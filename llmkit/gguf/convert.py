"""A model folder → one GGUF file, streamed a tensor at a time. Knows how the parts meet; the tables stand beside it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import gguf
import libgguf
import numpy as np
from gguf import GGMLQuantizationType

from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import architectures, tokenizer
from llmkit.gguf.architectures import Architecture, Array, ModelConfig, Transform
from llmkit.gguf.tokenizer import TokenizerFiles, read_json
from llmkit.gguf.types import FileType, Mixture, file_type
from llmkit.gguf.weights import Weights
from llmkit.progress import note, track

# Both write the same bytes; gguf has no K types and no 5-bit ones here.
_BY_GGUF = {GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}
_CHUNK_ELEMENTS = 1 << 22  # fp32 working memory of 16 MiB
_LARGEST_F16 = 65504.0


class ExportFacts(TypedDict):
    """`types`: GGML type → tensors; `fallback_tensors`: those whose row size forced another type than planned."""

    type: str
    architecture: str
    tensors: int
    parameters: int
    fallback_tensors: int
    bits_per_weight: float
    types: dict[str, int]
    warnings: list[str]


@dataclass(frozen=True)
class _Planned:
    """One tensor to write: from the file under `hf`, or `ready` as it is. `shape` is HF's."""

    gguf: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    fell_back: bool = False
    hf: str = ""
    transform: Transform | None = None
    ready: Array | None = None

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return gguf.quant_shape_to_byte_shape(self.shape, self.type)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.byte_shape, dtype=np.int64))


def export(
    model_dir: Path, out: Path, *, type: str, template: str, name: str, metadata: Mapping[str, str] | None = None
) -> ExportFacts:
    """Write the model in `model_dir` (config, safetensors, tokenizer files) to the GGUF file `out`.

    `type` is a key of `types.TYPES`, `template` the Jinja text of the chat template ("" for none), `name` becomes
    general.name, and `metadata` adds string keys such as general.license.

    Raises:
        UsageError: an architecture, tokenizer or type that is not supported.
        DataError: a file of the folder is missing or damaged, or a weight is not finite.
        MachineError: the file cannot be written.
    """
    chosen = file_type(type)
    where = str(model_dir)
    architecture, config = architectures.parse(read_json(model_dir / "config.json"), where=where)
    architecture_metadata = architecture.metadata(config)
    weights = Weights(model_dir)
    planned = _plan(architecture, config, weights, chosen=chosen, where=where)
    vocabulary = tokenizer.metadata(TokenizerFiles.read(model_dir), rows=config.vocab_size, template=template)
    warnings = architecture.warnings(config)
    for warning in warnings:
        note(warning)
    everything = {
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(chosen.code),
        **{f"{architecture.name}.{key}": value for key, value in architecture_metadata.items()},
        **vocabulary,
        **(metadata or {}),
    }
    try:
        _write(out, architecture, everything, planned, weights=weights, scalars=architecture_metadata)
    except OSError as error:
        raise MachineError(f"cannot write the GGUF file: {error}", where=str(out)) from None
    return _facts(architecture, chosen, planned, warnings)


def _plan(architecture: Architecture, config: ModelConfig, weights: Weights, *, chosen: FileType, where: str) -> list[_Planned]:
    mixture = Mixture(
        chosen, config.num_hidden_layers, architecture.tied(config), config.num_key_value_heads < config.num_attention_heads
    )
    planned: list[_Planned] = []
    names = weights.names
    expected = architecture.tensors(config)
    for tensor in expected:
        if not tensor.required and tensor.hf not in names:
            continue
        shape = weights.shape(tensor.hf)
        if shape != tensor.shape:
            raise DataError(f"tensor {tensor.hf} has shape {shape}, config.json says {tensor.shape}", where=where)
        kind, fell_back = mixture.choose(tensor.gguf, shape)
        planned.append(_Planned(tensor.gguf, shape, kind, fell_back, tensor.hf, tensor.transform))
    ignored = {tensor.hf for tensor in expected} | {"lm_head.weight"}
    unknown = sorted(name for name in names - ignored if not name.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise DataError(f"{architecture.name} has no place for these tensors: {', '.join(unknown[:3])}", where=where)
    for name, ready in architecture.computed(config).items():
        planned.append(_Planned(name, tuple(ready.shape), GGMLQuantizationType.F32, ready=ready))
    return planned


def _write(
    out: Path,
    architecture: Architecture,
    metadata: Mapping[str, Any],
    planned: list[_Planned],
    *,
    weights: Weights,
    scalars: Mapping[str, architectures.Value],
) -> None:
    writer = gguf.GGUFWriter(None, architecture.name)
    for key, value in metadata.items():
        _put(writer, key, value)
    for item in planned:
        writer.add_tensor_info(item.gguf, item.byte_shape, np.dtype(np.uint8), item.bytes, raw_dtype=item.type)
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with track(f"export {out.name}", total=len(planned)) as bar:
            for item in planned:
                weight = item.ready if item.ready is not None else weights.read(item.hf).float().numpy()
                if item.transform is not None:
                    weight = item.transform.forward(weight, scalars)
                writer.write_tensor_data(_encode(weight, item))
                bar.advance()
    finally:
        writer.close()


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write one key with the type that llama.cpp expects of its kind. bool first: it is an int too."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _encode(weight: Array, item: _Planned) -> Array:
    """`weight` in the bytes of its type, shape `item.byte_shape`."""
    rows = weight.reshape(-1, weight.shape[-1])
    encoded = np.empty((rows.shape[0], item.byte_shape[-1]), np.uint8)
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    quantize = gguf.quantize if item.type in _BY_GGUF else libgguf.quantize_rows
    for start in range(0, rows.shape[0], step):
        chunk = np.ascontiguousarray(rows[start : start + step])
        _check_range(chunk, item)
        encoded[start : start + step] = quantize(chunk, item.type).view(np.uint8)
    return encoded.reshape(item.byte_shape)


def _check_range(chunk: Array, item: _Planned) -> None:
    largest = max(float(chunk.max()), -float(chunk.min()))  # NaN in, NaN out
    if not np.isfinite(largest):
        raise DataError(f"tensor {item.hf} holds values that are not finite", next="the model is broken: train it again")
    if item.type is GGMLQuantizationType.F16 and largest > _LARGEST_F16:
        raise UsageError(f"tensor {item.hf} holds {largest:.3g}, too large for f16", next="export bf16")


def _facts(architecture: Architecture, chosen: FileType, planned: list[_Planned], warnings: list[str]) -> ExportFacts:
    parameters = sum(int(np.prod(item.shape, dtype=np.int64)) for item in planned if item.hf)
    return {
        "type": chosen.name,
        "architecture": architecture.name,
        "tensors": len(planned),
        "parameters": parameters,
        "fallback_tensors": sum(item.fell_back for item in planned),
        "bits_per_weight": round(8 * sum(item.bytes for item in planned) / parameters, 3),
        "types": dict(Counter(item.type.name for item in planned)),
        "warnings": warnings,
    }
