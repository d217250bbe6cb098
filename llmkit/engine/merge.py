"""Adds a LoRA delta to its base and proves that nothing was lost. Knows weights; nothing of recipes."""

import gc
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError

from llmkit import progress
from llmkit.artifact import Facts
from llmkit.engine import loading, probe
from llmkit.errors import DataError, FidelityError

# Largest logit difference that fp32 arithmetic in another order explains.
FP32_TOLERANCE = 2e-3
# Share of the fine-tune (as KL) that rounding the saved weights may cost; beyond it `auto` saves fp32.
MAX_ROUNDING_LOSS = 0.05
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def merge(
    base: Path, adapter: Path, out: Path, *, dtype: Literal["auto", "bf16", "fp32"], eos_tokens: tuple[str, ...] = ()
) -> Facts:
    """Write base + adapter to `out` as one model, with the adapter's tokenizer and template.

    The sum is made in fp32 and its logits must equal base + adapter's. What is saved is loaded again and compared too.

    Args:
        base: the folder of an unquantized model.
        adapter: a peft LoRA folder, with its tokenizer.
        out: an empty folder.
        dtype: what to save; auto is bf16 unless rounding to it would lose over 5 % of the fine-tune.
        eos_tokens: turn ends to add to the generation config's EOS ids.

    Raises:
        DataError: the base is quantized, or the adapter does not fit it.
        FidelityError: the merged or the saved model speaks differently.
    """
    tokenizer = loading.load_tokenizer(adapter)
    with progress.track("merging", total=4) as bar:
        model = _with_adapter(base, adapter)
        expected = probe.logits(model, tokenizer)
        with model.disable_adapter():
            effect = probe.difference(expected, probe.logits(model, tokenizer))
        bar.advance(text="base + adapter")
        merged = model.merge_and_unload(safe_merge=True)
        parity = probe.difference(expected, probe.logits(merged, tokenizer))
        _prove(parity, "the merged model", FP32_TOLERANCE)
        bar.advance(text="merged")
        _add_eos(merged, tokenizer, eos_tokens)
        del model
        chosen, rounding = _save(merged, expected, effect, tokenizer, out, dtype=dtype)
        bar.advance(2, text=f"saved as {chosen}")
    return {
        "dtype": chosen,
        "max_logit_difference": parity.max_abs,
        "saved_max_logit_difference": rounding.max_abs,
        "rounding_kl": rounding.kl,
        "adapter_kl": effect.kl,
        "adapter_max_logit_difference": effect.max_abs,
    }


def _with_adapter(base: Path, adapter: Path) -> Any:
    model = loading.load_model(base, dtype=torch.float32)
    if getattr(model.config, "quantization_config", None):
        raise DataError(
            "an adapter is merged into the unquantized base only", where=str(base), next="name the bf16 or fp32 base"
        )
    try:
        return PeftModel.from_pretrained(model, str(adapter), local_files_only=True).eval()
    except (*loading.BROKEN, SafetensorError) as error:
        text = str(error).strip().splitlines()[0][:300]
        raise DataError(f"this adapter does not fit the base: {text}", where=str(adapter)) from error


def _save(
    merged: Any, expected: list[torch.Tensor], effect: probe.Difference, tokenizer: Any, out: Path, *, dtype: str
) -> tuple[str, probe.Difference]:
    """Save in the wanted dtype (auto: the first that keeps the fine-tune), reload, compare; returns the dtype and the gap."""
    for name in ("bf16", "fp32") if dtype == "auto" else (dtype,):
        gap = _save_as(merged, expected, tokenizer, out, DTYPES[name])
        lost = gap.kl / effect.kl if effect.kl > 0 else 0.0
        if dtype != "auto" or name == "fp32" or lost <= MAX_ROUNDING_LOSS:
            break
        progress.note(f"merge: bf16 would round {lost:.0%} of this small fine-tune away; saving fp32")
    if name == "fp32":
        _prove(gap, "the saved model", FP32_TOLERANCE)
    elif not gap.kl <= max(MAX_ROUNDING_LOSS * effect.kl, 1e-6):
        raise FidelityError(
            f"rounding to bf16 loses {lost:.0%} of the fine-tune", where="merge", next="set merge.dtype: auto or fp32"
        )
    return name, gap


def _save_as(merged: Any, expected: list[torch.Tensor], tokenizer: Any, out: Path, dtype: torch.dtype) -> probe.Difference:
    for path in out.iterdir():
        path.unlink()
    # One copy for each storage, so that tied weights stay tied and are written once.
    original = merged.state_dict()
    copies = {tensor.data_ptr(): tensor.to(dtype) for tensor in original.values()}
    merged.config.dtype = dtype
    merged.save_pretrained(out, state_dict={name: copies[tensor.data_ptr()] for name, tensor in original.items()})
    tokenizer.save_pretrained(out)
    saved = loading.load_model(out, dtype=torch.float32)
    gap = probe.difference(expected, probe.logits(saved, tokenizer))
    del saved
    gc.collect()
    return gap


def _add_eos(model: Any, tokenizer: Any, tokens: tuple[str, ...]) -> None:
    known = model.generation_config.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or [])
    more = [tokenizer.convert_tokens_to_ids(token) for token in (*tokens, tokenizer.eos_token) if token]
    model.generation_config.eos_token_id = list(dict.fromkeys([*ids, *more]))


def _prove(gap: probe.Difference, who: str, tolerance: float) -> None:
    # Written so that a NaN fails too.
    if not gap.max_abs <= tolerance:
        raise FidelityError(
            f"{who} differs from base + adapter by {gap.max_abs:.3g} in a logit (at most {tolerance:g})",
            where="merge",
            next="nothing was published; check that the adapter was trained on this base",
        )
