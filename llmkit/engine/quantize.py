"""Checkpoints in 8 and 4 bits: made, saved, loaded again and tried. Knows weights; nothing of recipes."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from llmkit import progress
from llmkit.artifact import Facts
from llmkit.engine import loading, probe
from llmkit.errors import DataError, FidelityError, UsageError

# Mean KL beyond which a quantized model no longer is the model: random weights lie near ln(vocabulary) ≈ 10.
BROKEN_KL = 5.0


@dataclass(frozen=True)
class Settings:
    """bitsandbytes' choices: LLM.int8() for 8 bits (Dettmers et al. 2022), NF4 or FP4 for 4 (Dettmers et al. 2023).

    `double_quant`: the scales of 4-bit blocks are quantized too. `skip`: modules left as they are, by name or by the end of
    it; the head always is.
    """

    bits: Literal[4, 8]
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = False
    skip: tuple[str, ...] = ()


def quantize(model: Path, out: Path, settings: Settings) -> Facts:
    """Write the model in `model` to `out` with its linear layers in 8 or 4 bits, and its tokenizer beside it.

    Raises:
        UsageError: `skip` names what the model does not have.
        DataError: the model is quantized already, or nothing of it would be.
        FidelityError: what was saved does not load again, or no longer resembles the model.
    """
    _require_unquantized(model)
    kept = _kept(model, settings.skip)
    tokenizer = loading.load_tokenizer(model)
    with progress.track(f"quantizing to {settings.bits} bits", total=3) as bar:
        source = loading.load_model(model)
        expected = probe.logits(source, tokenizer)
        del source
        bar.advance(text="reference")
        quantized = _load_quantized(model, settings, kept)
        # Saved before any forward pass: on a CPU bitsandbytes repacks a 4-bit layer at its first use.
        loading.save_model(quantized, out)
        tokenizer.save_pretrained(out)
        layers = sum("bitsandbytes" in type(module).__module__ for module in quantized.modules())
        del quantized
        gc.collect()
        bar.advance(text="saved")
        gap = probe.difference(expected, probe.logits(loading.load_model(out), tokenizer))
        bar.advance(text="loaded again")
    if not gap.kl < BROKEN_KL:
        raise FidelityError(
            f"the quantized model no longer resembles its source (KL {gap.kl:.2f} nats)",
            code="LK0504",
            where=f"{settings.bits} bits",
        )
    return {
        "bits": settings.bits,
        "quant_type": settings.quant_type if settings.bits == 4 else "int8",
        "double_quant": settings.double_quant,
        "skipped": kept,
        "quantized_layers": layers,
        "probe_kl": gap.kl,
        "weights_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "source_weights_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
    }


def _require_unquantized(model: Path) -> None:
    """Told by config.json, before any weight is read."""
    if getattr(loading.load_config(model), "quantization_config", None):
        raise DataError(
            "this model is quantized already", code="LK0309", where=str(model), next="quantize the merged bf16 or fp32 model"
        )


def _kept(folder: Path, skip: Sequence[str]) -> list[str]:
    """What stays as it is: transformers' own choice (the head and what is tied to it), which an explicit list would replace."""
    model = loading.empty_model(folder)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in skip:
        if not any(f".{name}." in f".{layer}." for layer in linear):
            parts = sorted({layer.rpartition(".")[2] for layer in linear})
            raise UsageError(
                f"skip: the model has no linear layer called {name}", code="LK0505", next=f"known: {', '.join(parts)}"
            )
    kept = sorted(
        {*get_keys_to_not_convert(model), *(layer for layer in linear if any(f".{name}." in f".{layer}." for name in skip))}
    )
    if set(linear) <= set(kept):
        raise DataError("the model has no linear layer to quantize", code="LK0505", where=str(folder))
    return kept


def _load_quantized(folder: Path, settings: Settings, kept: list[str]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=_for_transformers(settings, kept),
        dtype=torch.bfloat16,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        device_map=loading.device(),
    ).eval()


def _for_transformers(settings: Settings, kept: list[str]) -> BitsAndBytesConfig:
    if settings.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quant_type,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        llm_int8_skip_modules=kept,
    )
