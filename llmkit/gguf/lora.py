"""A peft LoRA folder → one GGUF adapter, which llama.cpp lays over any quantization of its base. Knows no base weights.

Follows llama.cpp's src/llama-adapter.cpp (names, shapes, what is refused) and src/llama-graph.cpp: the delta of a layer is
adapter.lora.alpha / rank · B·A, with one alpha for the file. What peft scales otherwise is folded into B.
LoRA: Hu et al. 2021, arXiv:2106.09685. rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
"""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import gguf
import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import architectures, writing
from llmkit.gguf.architectures import Architecture, Array, Metadata, ModelConfig, Tensor
from llmkit.gguf.tokenizer import read_json
from llmkit.gguf.weights import FLOATS, Stored, header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
AdapterType = Literal["f16", "f32"]
_DTYPES = {"f32": np.float32, "f16": np.float16}
_MAX_CONFIG_BYTES = 16 << 20
_MERGE = "merge it into its base, and export the merged model"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB]\.weight|embedding_[AB])")
_LINEAR, _EMBEDDING = ("A.weight", "B.weight"), ("embedding_A", "embedding_B")
_EMBEDDER = "model.embed_tokens"
# A copy of the base's own weights that peft saves beside an embedding's LoRA; it is not trained.
_COPY = ".base_layer.weight"
# Settings that change what the factors mean beyond what a GGUF adapter can say, and how to name them.
_BEYOND = {
    "use_dora": "DoRA",
    "modules_to_save": "modules that were trained whole (modules_to_save)",
    "trainable_token_indices": "tokens that were trained whole (trainable_token_indices)",
    "lora_bias": "biases (lora_bias)",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
}
# Settings that say how an adapter was trained or found, not what its weights mean.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
}
# The initialisations that leave the base as it was: the others are differences to a base that is on no disk.
_INITS = (True, False, "gaussian", "orthogonal", "eva")
_MAX_PATTERN = 200  # characters
_LONGEST_SHOWN = 80
_MAX_WILDCARDS = 2


class AdapterFacts(TypedDict):
    """`alpha`: the file's; `ranks`: rank → layers; `modules`: the last parts of their names."""

    type: str
    architecture: str
    tensors: int
    parameters: int
    alpha: float
    ranks: dict[int, int]
    modules: list[str]


class _Settings(BaseModel, frozen=True, extra="allow"):
    """What is read of adapter_config.json; the rest stays in `model_extra`."""

    peft_type: str
    r: int = Field(gt=0, le=1 << 20)
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, FiniteFloat] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """One layer's LoRA. `down`: A, `up`: B; `alpha`: alpha / rank is peft's scale; `embeds`: A is looked up by token."""

    tensor: Tensor
    down: Stored
    up: Stored
    alpha: float
    embeds: bool

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def down_shape(self) -> tuple[int, int]:
        """As GGUF has it: llama.cpp looks an embedding's A up by rows."""
        rows, columns = self.down.shape
        return (columns, rows) if self.embeds else (rows, columns)


def export_adapter(
    adapter_dir: Path,
    base_dir: Path,
    out: Path,
    *,
    name: str,
    metadata: Mapping[str, str | int] | None = None,
    type: AdapterType = "f16",
) -> AdapterFacts:
    """Write the LoRA adapter in `adapter_dir` (adapter_config.json, adapter_model.safetensors) to the GGUF file `out`.

    Of the base only config.json in `base_dir` is read. `name` becomes general.name, and `metadata` adds string keys, such as
    general.license. The tokenizer is not in the file: the base's is used.

    Raises:
        UsageError: what a GGUF adapter cannot say (DoRA, whole modules, biases, tied embeddings); an architecture that is not
            supported; a value too large for f16.
        DataError: a file is missing or damaged, a factor does not fit its layer, or a value is not finite.
        MachineError: the file cannot be written.
    """
    where = str(adapter_dir)
    architecture, config = architectures.parse(read_json(base_dir / "config.json"), where=str(base_dir))
    scalars = architecture.metadata(config)
    settings = _settings(adapter_dir)
    layers = _layers(adapter_dir, architecture, config, settings)
    alpha = _file_alpha(layers, where=where)
    everything = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": name,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(None, architecture.name)
    for key, value in everything.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for layer in layers:
        for suffix, shape in (("a", layer.down_shape), ("b", layer.up.shape)):
            count = math.prod(shape) * np.dtype(_DTYPES[type]).itemsize
            writer.add_tensor_info(f"{layer.tensor.gguf}.lora_{suffix}", shape, np.dtype(_DTYPES[type]), count)
    _write(writer, layers, out, alpha=alpha, scalars=scalars, type=type)
    return {
        "type": type,
        "architecture": architecture.name,
        "tensors": 2 * len(layers),
        "parameters": sum(math.prod(layer.down.shape) + math.prod(layer.up.shape) for layer in layers),
        "alpha": alpha,
        "ranks": dict(Counter(layer.rank for layer in layers)),
        "modules": sorted({layer.tensor.hf.split(".")[-2] for layer in layers}),
    }


def _settings(folder: Path) -> _Settings:
    """What adapter_config.json says, as far as a GGUF adapter can say it too."""
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise UsageError(
                "this is a whole model, not an adapter", code="LK0618", where=str(folder), next="export it as a model"
            )
        raise DataError(f"no {CONFIG} here", code="LK0310", where=str(folder), next="name the folder of a LoRA adapter")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise DataError(f"{CONFIG} is over {_MAX_CONFIG_BYTES} bytes", code="LK0312", where=str(folder))
    try:
        settings = _Settings.model_validate({key: value for key, value in read_json(path).items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key = _shown(".".join(str(part) for part in first["loc"]))
        raise DataError(f"{CONFIG}: {key}: {first['msg']}", code="LK0312", where=str(folder)) from None
    if settings.peft_type != "LORA":
        raise UsageError(
            f"this is a {_shown(settings.peft_type)} adapter; GGUF knows LoRA only",
            code="LK0618",
            where=str(folder),
            next=_MERGE,
        )
    _refuse_more(settings, where=str(folder))
    return settings


def _refuse_more(settings: _Settings, *, where: str) -> None:
    if settings.init_lora_weights not in _INITS:
        raise UsageError(
            f"its initialisation {_shown(str(settings.init_lora_weights))} changed the base it is a difference to",
            code="LK0618",
            where=where,
            next="save it as a plain LoRA (peft: path_initial_model_for_weight_conversion)",
        )
    extra = settings.model_extra or {}
    more = [_BEYOND.get(key, _shown(key)) for key, value in extra.items() if value and key not in _HARMLESS]
    if settings.bias != "none":
        more.append(f"biases (bias: {_shown(settings.bias)})")
    if more:
        raise _beyond(", ".join(more)[:200], where=where)


def _layers(folder: Path, architecture: Architecture, config: ModelConfig, settings: _Settings) -> list[_Layer]:
    """The adapter's layers in the order of the model's tensors, every shape checked."""
    known = {tensor.hf: tensor for tensor in architecture.tensors(config)}
    tied = architecture.tied(config)
    found: dict[str, _Layer] = {}
    for module, parts in _factors(folder).items():
        tensor = known.get(f"{module}.weight")
        if tied and module in ("lm_head", _EMBEDDER):
            raise _beyond(f"a LoRA on {module}, which this base ties to another (llama.cpp has one tensor)", where=str(folder))
        if tensor is None or len(tensor.shape) != 2:
            what = f"the base has no linear layer {_shown(module)}"
            raise DataError(what, code="LK0311", where=str(folder), next="name the base it was trained on")
        found[tensor.hf] = _layer(module, tensor, parts, settings, where=str(folder))
    return [found[name] for name in known if name in found]


def _layer(module: str, tensor: Tensor, parts: Mapping[str, Stored], settings: _Settings, *, where: str) -> _Layer:
    embeds = module == _EMBEDDER
    wanted = _EMBEDDING if embeds else _LINEAR
    if parts.keys() != set(wanted):
        raise DataError(
            f"the adapter has {' and '.join(sorted(parts))} of {module}, not {' and '.join(wanted)}", code="LK0312", where=where
        )
    if tensor.transform is not None and not tensor.transform.moves:
        raise _beyond(f"a LoRA on {module}, whose weights change their values in GGUF", where=where)
    down, up = (parts[part] for part in wanted)
    outside, inside = reversed(tensor.shape) if embeds else tensor.shape
    rank = up.shape[-1] if up.shape else 0
    if not rank or down.shape != (rank, inside) or up.shape != (outside, rank):
        raise DataError(
            f"the factors of {module} are {list(down.shape)} and {list(up.shape)}, the layer is {list(tensor.shape)}",
            code="LK0311",
            where=where,
            next="name the base it was trained on",
        )
    if rank not in (settings.r, *settings.rank_pattern.values()):
        raise DataError(f"{module} has rank {rank}, {CONFIG} says {settings.r}", code="LK0312", where=where)
    alpha = _alpha(module, settings, where=where)
    return _Layer(tensor, down, up, alpha * math.sqrt(rank) if settings.use_rslora else alpha, embeds)


def _alpha(module: str, settings: _Settings, *, where: str) -> float:
    """As peft's `get_pattern_key`: the first pattern that matches the end of the module's name."""
    for pattern, alpha in settings.alpha_pattern.items():
        # Someone else's expression could match for ever: no groups, no alternatives, few wildcards.
        if len(pattern) > _MAX_PATTERN or not re.fullmatch(r"[\w.^$\\*-]*", pattern) or pattern.count("*") > _MAX_WILDCARDS:
            raise UsageError(f"cannot follow the alpha_pattern {_shown(pattern)}", code="LK0618", where=where, next=_MERGE)
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise DataError(
                f"the alpha_pattern {_shown(pattern)} is no expression: {error}", code="LK0312", where=where
            ) from None
        if matches:
            return alpha
    return settings.lora_alpha


def _factors(folder: Path) -> dict[str, dict[str, Stored]]:
    """Module → part → where it lies."""
    if (folder / _PICKLED).exists() and not (folder / WEIGHTS).exists():
        raise DataError(
            f"{_PICKLED} is never read: unpickling runs code",
            code="LK0320",
            where=str(folder),
            next=f"save it as {WEIGHTS} with peft",
        )
    found: dict[str, dict[str, Stored]] = {}
    for key, stored in header(folder / WEIGHTS).items():
        name = key.removeprefix(_PREFIX)
        if name.endswith(_COPY):
            continue
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise _beyond(f"{_shown(key)}, which is no factor of a LoRA", where=str(folder))
        if stored.dtype not in FLOATS:
            raise DataError(f"{_shown(key)} holds {stored.dtype}, not {', '.join(FLOATS)}", code="LK0312", where=str(folder))
        parts = found.setdefault(match["module"], {})
        if match["part"] in parts:
            raise DataError(
                f"the adapter has lora_{match['part']} of {_shown(match['module'])} twice", code="LK0312", where=str(folder)
            )
        parts[match["part"]] = stored
    if not found:
        raise DataError("this adapter holds no LoRA weights", code="LK0310", where=str(folder))
    return found


def _file_alpha(layers: Sequence[_Layer], *, where: str) -> float:
    """The alpha that fits most layers as they are. Zero would mean "unscaled" to llama.cpp."""
    wanted = Counter(layer.alpha for layer in layers if layer.alpha)
    if not wanted:
        raise UsageError("this adapter's lora_alpha is 0: it changes nothing", code="LK0618", where=where)
    alpha = float(np.float32(wanted.most_common(1)[0][0]))
    if not alpha or not math.isfinite(alpha):
        raise DataError(f"this adapter's lora_alpha is {wanted.most_common(1)[0][0]}", code="LK0618", where=where)
    return alpha


def _write(
    writer: gguf.GGUFWriter,
    layers: Sequence[_Layer],
    out: Path,
    *,
    alpha: float,
    scalars: Metadata,
    type: AdapterType,
) -> None:
    needed = sum(tensor.nbytes for tensor in writer.tensors[0].values())
    draft = out.with_name(out.name + ".part")
    try:
        try:
            free = shutil.disk_usage(out.parent).free
            if needed > free:
                raise MachineError(
                    f"the adapter needs {needed} bytes of disk; {free} are free",
                    code="LK0902",
                    where=str(out),
                    next="free some",
                )
            writer.write_header_to_file(draft)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for layer in layers:
                for part in _ready(layer, alpha, scalars):
                    writer.write_tensor_data(_encode(part, layer.tensor.hf, type, where=str(layer.up.path)))
        finally:
            writer.close()
        os.replace(draft, out)
    except OSError as error:
        raise MachineError(f"cannot write the adapter: {error}", code="LK0903", where=str(out)) from None
    finally:
        draft.unlink(missing_ok=True)


def _ready(layer: _Layer, alpha: float, scalars: Metadata) -> tuple[Array, Array]:
    """A and B in float32, as GGUF has them."""
    down, up = writing.read_whole(layer.down), writing.read_whole(layer.up)
    if layer.embeds:
        down = down.T
    if abs(layer.alpha - alpha) > 1e-6 * abs(alpha):  # more than float32 can tell
        up = up * np.float32(layer.alpha / alpha)
    if layer.tensor.transform is not None:
        up = layer.tensor.transform.forward(up, scalars)
    return np.ascontiguousarray(down), np.ascontiguousarray(up)


def _encode(values: Array, name: str, type: AdapterType, *, where: str) -> Array:
    largest = max(float(values.max()), -float(values.min()))  # NaN in, NaN out
    if not math.isfinite(largest):
        raise DataError(
            f"the adapter's share of {name} is not finite",
            code="LK0319",
            where=where,
            next="train it again with a lower finetune.lr",
        )
    if type == "f16" and largest > writing.LARGEST_F16:
        raise UsageError(
            f"the adapter's share of {name} holds {largest:.3g}, too large for f16",
            code="LK0613",
            where=where,
            next="export f32",
        )
    return values.astype(_DTYPES[type])


def _beyond(what: str, *, where: str) -> UsageError:
    return UsageError(f"a GGUF adapter cannot hold {what}", code="LK0618", where=where, next=_MERGE)


def _shown(name: str) -> str:
    """A stranger's name in an error: one short line."""
    return name if name.isprintable() and len(name) <= _LONGEST_SHOWN else repr(name[:_LONGEST_SHOWN])
