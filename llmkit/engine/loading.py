"""Loads models and tokenizers from local folders. Knows transformers; nothing of hubs or recipes.

Nothing here unpickles or runs a model folder's own code: safetensors only, `trust_remote_code` off.
"""

import contextlib
import ctypes
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llmkit.engine.precision import Precision
from llmkit.errors import DataError, MachineError

# What a broken folder raises, by library: a missing or odd file, a bad value, a tensor that does not fit.
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, StrictDataclassError)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: Any = None,
    four_bit: Precision | None = None,
    offload: Path | None = None,
) -> Any:
    """The causal language model saved in `folder`, in eval mode, on this machine's device.

    A bitsandbytes folder keeps its own storage types; `dtype` is then the compute type.

    Args:
        folder: config.json and safetensors.
        dtype: what float weights are loaded as.
        config: taken in place of the folder's own.
        four_bit: store the linear layers (the head excepted) as NF4 with double quantization and compute with them in this
            precision (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).
        offload: a folder for weights; the model may then be larger than memory: weights come from disk as they are used.

    Raises:
        DataError: the folder does not hold a model that transformers can load from safetensors, or `four_bit` is asked of
            a model that is quantized already.
        MachineError: it does not fit in memory.
    """
    options: dict[str, Any] = {"device_map": device()}
    if four_bit:
        require_unquantized(folder, "a 4-bit base is made from an unquantized model")
        options["quantization_config"] = _nf4(four_bit)
    if offload:
        options |= {"device_map": "auto", "max_memory": _budget(), "offload_folder": offload}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise MachineError("the model does not fit in the device's memory", code="LK0901", where=str(folder)) from error
    except (*BROKEN, SafetensorError) as error:
        raise DataError(f"this model cannot be loaded: {_first_line(error)}", code="LK0306", where=str(folder)) from error
    if four_bit:
        _keep_layout(model)
    return model.eval()


def require_unquantized(folder: Path, why: str) -> None:
    """Refuse a model whose weights are stored quantized.

    Raises:
        DataError: it is; `why` is what the user reads.
    """
    if getattr(load_config(folder), "quantization_config", None):
        raise DataError(f"{why}; this one is quantized", code="LK0309", where=str(folder), next="name the bf16 or fp32 base")


def free_memory() -> int:
    """Bytes that a model may take on this machine's device now."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def release() -> None:
    """Give back to the system what models no longer in use have held."""
    gc.collect()  # a wrapped module is part of a cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps what other threads freed, and transformers loads in threads: the next model would come on top.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def use_threads(count: int) -> None:
    """Compute with so many threads of the processor from now on."""
    torch.set_num_threads(count)


def empty_model(folder: Path) -> Any:
    """The architecture of the model in `folder`, without weights (on the meta device).

    Raises:
        DataError: transformers does not know it.
    """
    config = load_config(folder)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except BROKEN as error:
        raise DataError(f"this config.json cannot be used: {_first_line(error)}", code="LK0306", where=str(folder)) from error


def from_weights(folder: Path, weights: Mapping[str, torch.Tensor]) -> Any:
    """The architecture of the model in `folder` with other weights of the same names, in fp32.

    Raises:
        DataError: a weight is missing, unknown or of another shape.
    """
    config = load_config(folder)
    try:
        with torch.device("meta"):
            architecture = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        model = architecture.from_pretrained(None, config=config, state_dict=dict(weights), dtype=torch.float32)
    except BROKEN as error:
        raise DataError(
            f"these weights are not this model's: {_first_line(error)}", code="LK0306", where=str(folder)
        ) from error
    return model.eval().to(device())


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer saved in `folder`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, trust_remote_code=False)
    except (*BROKEN, ImportError) as error:
        raise DataError(f"this tokenizer cannot be loaded: {_first_line(error)}", code="LK0307", where=str(folder)) from error
    if not tokenizer.is_fast:
        raise DataError(
            "this folder has no tokenizer.json", code="LK0307", where=str(folder), next="save it with a fast tokenizer"
        )
    return tokenizer


def load_config(folder: Path) -> Any:
    """The configuration saved in `folder`.

    Raises:
        DataError: there is none, or transformers does not know the architecture.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BROKEN as error:
        raise DataError(f"this config.json cannot be used: {_first_line(error)}", code="LK0306", where=str(folder)) from error


def read_tensor(folder: Path, *names: str) -> torch.Tensor:
    """The first of `names` that the folder's safetensors hold.

    Raises:
        DataError: none of them is there.
    """
    for name in names:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as stream:
                if name in stream.keys():  # noqa: SIM118 - not a mapping
                    return stream.get_tensor(name)
    raise DataError(f"no tensor named {' or '.join(names)}", code="LK0308", where=str(folder))


def save_model(model: Any, folder: Path) -> None:
    """Write weights (safetensors), config and generation config to `folder`."""
    model.save_pretrained(folder)


def _nf4(precision: Precision) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )


def _keep_layout(model: Any) -> None:
    # On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks a 4-bit layer at its first forward in eval mode; gradients and
    # everything else that dequantizes it are then silently wrong.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _budget() -> dict[int | str, int]:
    # A share of what is free: a layer's weights and activations come on top.
    budget: dict[int | str, int] = {"cpu": psutil.virtual_memory().available // 2}
    if torch.cuda.is_available():
        budget[0] = free_memory() // 2
    return budget


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
