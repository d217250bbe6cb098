"""Loads models and tokenizers from local folders. Knows transformers; nothing of hubs or recipes.

Nothing here unpickles or runs a model folder's own code: safetensors only, `trust_remote_code` off.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmkit.errors import DataError, MachineError

# What a broken folder raises, by library: a missing or odd file, a bad value, a tensor that does not fit.
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, config: Any = None) -> Any:
    """The causal language model saved in `folder`, in eval mode, on this machine's device.

    A bitsandbytes folder keeps its own storage types; `dtype` is then the compute type.

    Raises:
        DataError: the folder does not hold a model that transformers can load from safetensors.
        MachineError: it does not fit in memory.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            device_map=device(),
        )
    except torch.OutOfMemoryError as error:
        raise MachineError("the model does not fit in the device's memory", where=str(folder)) from error
    except (*BROKEN, SafetensorError) as error:
        raise DataError(f"this model cannot be loaded: {_first_line(error)}", where=str(folder)) from error
    return model.eval()


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
        raise DataError(f"these weights are not this model's: {_first_line(error)}", where=str(folder)) from error
    return model.eval().to(device())


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer saved in `folder`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, trust_remote_code=False)
    except (*BROKEN, ImportError) as error:
        raise DataError(f"this tokenizer cannot be loaded: {_first_line(error)}", where=str(folder)) from error
    if not tokenizer.is_fast:
        raise DataError("this folder has no tokenizer.json", where=str(folder), next="save it with a fast tokenizer")
    return tokenizer


def load_config(folder: Path) -> Any:
    """The configuration saved in `folder`.

    Raises:
        DataError: there is none, or transformers does not know the architecture.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BROKEN as error:
        raise DataError(f"this config.json cannot be used: {_first_line(error)}", where=str(folder)) from error


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
    raise DataError(f"no tensor named {' or '.join(names)}", where=str(folder))


def save_model(model: Any, folder: Path) -> None:
    """Write weights (safetensors), config and generation config to `folder`."""
    model.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
