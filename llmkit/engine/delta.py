"""What a LoRA adapter adds to each weight. Knows peft's files (adapter_config.json, adapter_model.safetensors) and the sum;
nothing of models, probes or what is trained.

LoRA: Hu et al. 2021, arXiv:2106.09685. rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. DoRA: Liu et al. 2024, arXiv:2402.09353.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llmkit.engine import shards
from llmkit.engine.shards import Entry
from llmkit.errors import DataError, FidelityError, UsageError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 16 << 20
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)")
# Settings that say how an adapter was trained or found, not what its weights mean.
_HARMLESS = {
    *("auto_mapping", "bias", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type"),
    *("use_dora", "use_rslora"),
}
# The initialisations that leave the base as it was: the others are differences to a base that is on no disk.
_INITS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk. `factors`: module → part (lora_A, lora_B, lora_magnitude_vector) → the tensor's name in the file;
    `replaced`: a weight's name in the model → the tensor's name in the file."""

    path: Path
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    tied: bool
    factors: Mapping[str, Mapping[str, str]]
    replaced: Mapping[str, str]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def saved_modules(self) -> list[str]:
        """The full names of the modules that are replaced as a whole."""
        return sorted({name.rpartition(".")[0] for name in self.replaced})

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return shards.header(self.path / WEIGHTS)

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor of the file, in float32.

        Raises:
            FidelityError: it holds a NaN or an infinity.
        """
        tensor = shards.read(self.entries[key], key).float()
        if not tensor.isfinite().all():
            raise FidelityError(
                f"the adapter's {key} is not finite",
                code="LK0319",
                where=str(self.path),
                next="train it again with a lower finetune.lr",
            )
        return tensor


def read(folder: Path) -> Adapter:
    """The LoRA adapter in `folder`; its tensors are looked at, none is kept.

    Raises:
        DataError: no adapter, a broken one, or one that asks for what cannot be merged.
    """
    config = _config(folder)
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for key in shards.header(folder / WEIGHTS):
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = key
        # With the tie kept, peft also writes the tied copy, and names it nowhere; `check_fit` compares the two.
        elif _is_saved(name, config["modules_to_save"] or []) or config.get("ensure_weight_tying"):
            replaced[name] = key
        else:
            raise DataError(
                f"{key} is neither a linear layer's LoRA factor nor in modules_to_save",
                code="LK0313",
                where=str(folder),
                next="llmkit merges LoRA on linear layers only; merge this adapter with the tool that made it",
            )
    adapter = Adapter(
        path=folder,
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        tied=bool(config.get("ensure_weight_tying")),
        factors=factors,
        replaced=replaced,
    )
    _check_shapes(adapter)
    return adapter


def check_fit(adapter: Adapter, base: Mapping[str, Entry], *, linear: set[str], tied: Mapping[str, str]) -> None:
    """Refuse an adapter that does not belong on this base.

    Args:
        adapter: as `read` gave it.
        base: the base's tensors on disk.
        linear: the names of its linear layers.
        tied: names of weights that are another's, such as {"lm_head.weight": "model.embed_tokens.weight"}.

    Raises:
        DataError: a module that the base has not or that is not linear, another shape, or one of two tied weights alone.
    """
    shared = {*tied, *tied.values()}
    for module, parts in adapter.factors.items():
        name = f"{module}.weight"
        if module not in linear or name not in base:
            raise _misfit(adapter, f"the base has no linear layer {module}")
        if name in shared:
            raise _misfit(adapter, f"{module} shares its weight with another module, and a change to one would change both")
        rows, columns = adapter.entries[parts["lora_B"]].shape[0], adapter.entries[parts["lora_A"]].shape[1]
        if (rows, columns) != base[name].shape:
            raise _misfit(adapter, f"{module} is {list(base[name].shape)} in the base and [{rows}, {columns}] in the adapter")
    for name, key in adapter.replaced.items():
        found = base.get(name) or base.get(tied.get(name, ""))
        if found is None:
            raise _misfit(adapter, f"the base has no weight {name}")
        if found.shape != adapter.entries[key].shape:
            raise _misfit(adapter, f"{name} is {list(found.shape)} in the base, {list(adapter.entries[key].shape)} here")
    for copy, original in tied.items():
        _check_tied(adapter, copy, original)


def check_sum(adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Refuse a weighted sum that has no meaning.

    Raises:
        UsageError: a weight that is no number, or a DoRA or a replaced module that is not alone with weight 1.
    """
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            raise UsageError(
                f"an adapter's weight must be a finite number, not {weight}", code="LK0503", where=str(adapter.path)
            )
        if (len(adapters) > 1 or weight != 1) and (adapter.dora or adapter.replaced):
            what = "a DoRA" if adapter.dora else "an adapter with modules_to_save"
            raise UsageError(
                f"{what} replaces weights, so it can only be merged alone and with weight 1",
                code="LK0503",
                where=str(adapter.path),
                next="leave it out of merge.adapters, or train it without",
            )


def apply(adapters: Sequence[tuple[Adapter, float]], name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight called `name` with every adapter's share of it added; `weight` itself where no adapter touches it.

    Args:
        adapters: each with its weight in the sum; DoRA and replaced modules count as weight 1.
        name: the weight's name in the model.
        weight: [out, in] of any float type, left as it is.

    Returns:
        float32 [out, in] if it was touched.

    Raises:
        FidelityError: an adapter's tensor is not finite.
    """
    module = name.removesuffix(".weight")
    for adapter, share in adapters:
        if name in adapter.replaced:
            weight = adapter.tensor(adapter.replaced[name])
        elif name != module and module in adapter.factors:
            weight = _added(adapter, module, weight, share)
    return weight


def _added(adapter: Adapter, module: str, weight: torch.Tensor, share: float) -> torch.Tensor:
    parts = {part: adapter.tensor(key) for part, key in adapter.factors[module].items()}
    # Summed in fp32: bf16 would round small deltas away.
    total = torch.addmm(weight.float(), parts["lora_B"], parts["lora_A"], alpha=share * adapter.scale)
    if adapter.dora:
        # The magnitude belongs to an output row: equation 5 of the paper, whose ‖·‖c is over the inputs.
        total.mul_((parts["lora_magnitude_vector"] / torch.linalg.vector_norm(total, dim=1))[:, None])
    return total


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is over {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text("utf-8"))
        if config["peft_type"] != "LORA":
            raise ValueError(f"it is a {config['peft_type']} adapter; only LORA can be used")
        _check_values(config)
    except FileNotFoundError as error:
        raise DataError(
            f"no {CONFIG} here", code="LK0310", where=str(folder), next="name the folder of a LoRA adapter"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"this {CONFIG} cannot be used: {error}", code="LK0312", where=str(folder)) from error
    return dict(config)


def _check_values(config: dict[str, Any]) -> None:
    config.setdefault("modules_to_save", None)
    rank, alpha, saved = config["r"], config["lora_alpha"], config["modules_to_save"] or []
    if type(rank) is not int or rank < 1:
        raise ValueError(f"r is {rank}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha is {alpha}")
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise ValueError("modules_to_save is no list of names")
    if config.get("init_lora_weights", True) not in _INITS:
        raise ValueError(f"its initialisation {config['init_lora_weights']} changed the base it is a difference to")
    if config.get("bias", "none") != "none":
        raise ValueError("it trains biases")
    odd = sorted(name for name, value in config.items() if value and name not in _HARMLESS)
    if odd:
        raise ValueError(f"it uses {', '.join(odd)[:200]}, which cannot be merged here")


def _is_saved(name: str, modules: Sequence[str]) -> bool:
    owner = name.rpartition(".")[0]
    return any(owner == module or owner.endswith(f".{module}") for module in modules)


def _check_shapes(adapter: Adapter) -> None:
    if not adapter.factors:
        raise DataError("this adapter holds no LoRA weights", code="LK0310", where=str(adapter.path))
    wanted = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if adapter.dora else [])}
    for module, parts in adapter.factors.items():
        if set(parts) != wanted:
            raise DataError(f"{module} has {sorted(parts)}, not {sorted(wanted)}", code="LK0312", where=str(adapter.path))
        shapes = {part: adapter.entries[key].shape for part, key in parts.items()}
        ok = len(shapes["lora_A"]) == len(shapes["lora_B"]) == 2
        ok = ok and shapes["lora_A"][0] == shapes["lora_B"][1] == adapter.rank
        if not ok or shapes.get("lora_magnitude_vector", shapes["lora_B"][:1]) != shapes["lora_B"][:1]:
            raise DataError(
                f"the factors of {module} do not fit rank {adapter.rank}: {_listed(shapes)}",
                code="LK0312",
                where=str(adapter.path),
            )


def _check_tied(adapter: Adapter, copy: str, original: str) -> None:
    both = [adapter.replaced[name] for name in (copy, original) if name in adapter.replaced]
    if both and not (len(both) == 2 and torch.equal(*(adapter.tensor(key) for key in both))):
        raise _misfit(
            adapter,
            f"the base ties {copy} to {original}, and the adapter gives them different values",
            next="train modules_to_save with the tie kept (peft: ensure_weight_tying), or leave the embeddings out",
        )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))


def _misfit(adapter: Adapter, what: str, *, next: str = "merge it into the base it was trained on") -> DataError:
    return DataError(f"this adapter does not fit the base: {what}", code="LK0311", where=str(adapter.path), next=next)
