"""bitsandbytes INT8 and 4-bit checkpoints: made, saved, loaded again and tried. Knows weights; nothing of recipes."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from llmkit import progress
from llmkit.artifact import Facts
from llmkit.engine import loading, probe
from llmkit.errors import DataError, FidelityError

# Mean KL beyond which a quantized model no longer is the model: random weights lie near ln(vocabulary) ≈ 10.
BROKEN_KL = 5.0


def settings(bits: int) -> BitsAndBytesConfig:
    """bitsandbytes' settings: LLM.int8() for 8 bits (Dettmers et al. 2022), NF4 for 4 (Dettmers et al. 2023)."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def quantize(model: Path, out: Path, *, bits: int) -> Facts:
    """Write the model in `model` to `out` with its linear layers in 8 or 4 bits, and its tokenizer beside it.

    Raises:
        DataError: the model is quantized already.
        FidelityError: what was saved does not load again, or no longer resembles the model.
    """
    tokenizer = loading.load_tokenizer(model)
    with progress.track(f"quantizing to {bits} bits", total=3) as bar:
        source = loading.load_model(model)
        if getattr(source.config, "quantization_config", None):
            raise DataError("this model is quantized already", where=str(model), next="quantize the merged bf16 or fp32 model")
        expected = probe.logits(source, tokenizer)
        del source
        bar.advance(text="reference")
        quantized = _load_quantized(model, bits)
        # Saved before any forward pass: on a CPU bitsandbytes repacks a 4-bit layer at its first use.
        loading.save_model(quantized, out)
        tokenizer.save_pretrained(out)
        layers = sum("bitsandbytes" in type(module).__module__ for module in quantized.modules())
        del quantized
        gc.collect()
        bar.advance(text="saved")
        gap = probe.difference(expected, probe.logits(loading.load_model(out), tokenizer))
        bar.advance(text="loaded again")
    if not layers:
        raise DataError("the model has no linear layer to quantize", where=str(model))
    if not gap.kl < BROKEN_KL:
        raise FidelityError(f"the quantized model no longer resembles its source (KL {gap.kl:.2f} nats)", where=f"{bits} bits")
    return {
        "bits": bits,
        "quantized_layers": layers,
        "probe_kl": gap.kl,
        "weights_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "source_weights_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
    }


def _load_quantized(folder: Path, bits: int) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=settings(bits),
        dtype=torch.bfloat16,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        device_map=loading.device(),
    ).eval()
