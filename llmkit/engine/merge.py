"""Makes one model of a base and what was trained on it, and proves that nothing was lost. Knows weights; nothing of recipes.

The sum is made tensor by tensor from the base's files, so that it needs the memory of one tensor. The proof runs whole
models, one after the other; where one does not fit in memory its weights are read from disk as they are used.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from llmkit import progress
from llmkit.artifact import Facts
from llmkit.engine import adapted, delta, loading, probe, shards
from llmkit.engine.delta import Adapter
from llmkit.engine.shards import Entry
from llmkit.errors import DataError, FidelityError, MachineError, UsageError

# Largest logit difference that fp32 arithmetic in another order explains.
FP32_TOLERANCE = 2e-3
# Share of the fine-tune (as KL) that rounding the saved weights may cost; beyond it `auto` saves fp32.
MAX_ROUNDING_LOSS = 0.05
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Activations, the tokenizer and the rest of the process, as a share of a model's fp32 weights.
HEADROOM = 1.2
_EXACT = ".exact"
_OFFLOAD = ".offload"


@dataclass(frozen=True)
class _Base:
    """The base as it lies on disk. `linear`: its linear layers; `tied`: weights that are another's."""

    folder: Path
    entries: Mapping[str, Entry]
    linear: set[str]
    tied: Mapping[str, str]
    architecture: str

    @property
    def fp32_bytes(self) -> int:
        return 4 * sum(entry.elements for entry in self.entries.values())


@dataclass(frozen=True)
class _Plan:
    """What is to be saved: `source`'s weights with `adapters` added; and how the unmerged model speaks."""

    source: Path
    adapters: Sequence[tuple[Adapter, float]]
    expected: list[torch.Tensor]
    effect: probe.Difference

    def change(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        changed = delta.apply(self.adapters, name, weight)
        if changed is weight and self.adapters:
            return weight
        # One pass and no copy; a NaN or an infinity survives in the sum.
        if not changed.sum(dtype=torch.float64).isfinite():
            raise FidelityError(f"{name} is not finite after the merge; nothing was published", code="LK0319", where="merge")
        return changed


def merge(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    *,
    dtype: Literal["auto", "bf16", "fp32"],
    eos_tokens: tuple[str, ...] = (),
) -> Facts:
    """Write base + Σ weight · adapter to `out` as one model, with the first adapter's tokenizer and template.

    The sum is made in fp32 and its logits must equal those of the base with the adapters on it (peft's). What is saved is
    loaded again and compared too.

    Args:
        base: the folder of an unquantized model.
        adapters: folders of peft LoRA adapters, each with its weight; or one folder of a whole trained model, weight 1.
        out: an empty folder.
        dtype: what to save; auto is bf16 unless rounding to it would lose over 5 % of the fine-tune.
        eos_tokens: turn ends to add to the generation config's EOS ids.

    Raises:
        UsageError: a weighted sum that has no meaning.
        DataError: the base is quantized, an adapter is broken, or one does not fit the base.
        MachineError: the disk or the memory is too small.
        FidelityError: an adapter holds a NaN, or the merged or the saved model speaks differently.
    """
    loading.require_unquantized(base, "an adapter is merged into the unquantized base only")
    tokenizer = loading.load_tokenizer(adapters[0][0])
    with progress.track("merging", total=4) as bar:
        described = _describe(base)
        _require_disk(described, out)
        plan = _whole(described, adapters, tokenizer, out) or _summed(described, adapters, tokenizer, out)
        bar.advance(text="base + adapter")
        exact = out / _EXACT
        _lay_out(exact, described, tokenizer, dtype=torch.float32, eos_tokens=eos_tokens)
        shards.rewrite(plan.source, exact, plan.change, dtype=torch.float32)
        parity = probe.difference(plan.expected, _logits(exact, described, tokenizer, out))
        _prove(parity, "the merged model")
        bar.advance(text="merged")
        chosen, rounding = _save(plan, described, tokenizer, out, parity=parity, dtype=dtype, eos_tokens=eos_tokens)
        bar.advance(2, text=f"saved as {chosen}")
    return {
        "dtype": chosen,
        "adapters": len(adapters),
        "changed_weights": sum(len(adapter.factors) + len(adapter.replaced) for adapter, _ in plan.adapters),
        "max_logit_difference": parity.max_abs,
        "saved_max_logit_difference": rounding.max_abs,
        "rounding_kl": rounding.kl,
        "adapter_kl": plan.effect.kl,
        "adapter_max_logit_difference": plan.effect.max_abs,
    }


def _describe(base: Path) -> _Base:
    model = loading.empty_model(base)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return _Base(base, shards.entries(base), linear, dict(model.all_tied_weights_keys), type(model).__name__)


def _require_disk(base: _Base, out: Path) -> None:
    # The exact sum in fp32 and what is rounded from it, for a while side by side.
    needed, free = int(base.fp32_bytes * 1.5), shutil.disk_usage(out).free
    if needed > free:
        raise MachineError(
            f"merging needs {needed / 2**30:.1f} GiB of disk; {free / 2**30:.1f} GiB are free",
            code="LK0902",
            where=str(out),
            next="free some",
        )


def _whole(base: _Base, adapters: Sequence[tuple[Path, float]], tokenizer: Any, out: Path) -> _Plan | None:
    """What to save if a whole model was trained; None if adapters were."""
    whole = [path for path, _ in adapters if not (path / delta.CONFIG).exists() and (path / "config.json").exists()]
    if not whole:
        return None
    if len(adapters) > 1 or adapters[0][1] != 1:
        raise UsageError(
            "a fully trained model is no adapter that could be weighted",
            code="LK0503",
            where=str(whole[0]),
            next="leave merge.adapters out",
        )
    trained = {name: entry.shape for name, entry in shards.entries(whole[0]).items() if name not in base.tied}
    if trained != {name: entry.shape for name, entry in base.entries.items() if name not in base.tied}:
        raise DataError(
            "its weights are not those of this base", code="LK0314", where=str(whole[0]), next="name the base it was trained on"
        )
    reference = _logits(base.folder, base, tokenizer, out)
    expected = _logits(whole[0], base, tokenizer, out)
    return _Plan(whole[0], (), expected, probe.difference(expected, reference))


def _summed(base: _Base, adapters: Sequence[tuple[Path, float]], tokenizer: Any, out: Path) -> _Plan:
    parts = [(delta.read(path), weight) for path, weight in adapters]
    delta.check_sum(parts)
    for adapter, _ in parts:
        delta.check_fit(adapter, base.entries, linear=base.linear, tied=base.tied)
    with _model(base.folder, base, out) as (model, offloaded):
        reference = probe.logits(model, tokenizer)
        whole = adapted.by_hooks(model, parts, base.entries) if offloaded else adapted.by_peft(model, parts)
        expected = probe.logits(whole, tokenizer)
        del whole
    return _Plan(base.folder, parts, expected, probe.difference(expected, reference))


@contextmanager
def _model(folder: Path, base: _Base, out: Path) -> Iterator[tuple[Any, bool]]:
    """The model in `folder` in fp32, and whether its weights stay on disk for lack of memory."""
    offload = out / _OFFLOAD if base.fp32_bytes * HEADROOM > loading.free_memory() else None
    loading.release()  # the model before this one
    try:
        yield loading.load_model(folder, dtype=torch.float32, offload=offload), offload is not None
    finally:
        if offload:
            shutil.rmtree(offload, ignore_errors=True)


def _logits(folder: Path, base: _Base, tokenizer: Any, out: Path) -> list[torch.Tensor]:
    with _model(folder, base, out) as (model, _):
        return probe.logits(model, tokenizer)


def _save(
    plan: _Plan, base: _Base, tokenizer: Any, out: Path, *, parity: probe.Difference, dtype: str, eos_tokens: tuple[str, ...]
) -> tuple[str, probe.Difference]:
    """Leave the wanted dtype in `out` (auto: bf16 if it keeps the fine-tune); returns the dtype and its gap."""
    exact, rounded = out / _EXACT, out / ".rounded"
    chosen, gap = "fp32", parity
    if dtype != "fp32":
        _lay_out(rounded, base, tokenizer, dtype=torch.bfloat16, eos_tokens=eos_tokens)
        shards.rewrite(exact, rounded, lambda _, weight: weight, dtype=torch.bfloat16)
        found = probe.difference(plan.expected, _logits(rounded, base, tokenizer, out))
        lost = found.kl / plan.effect.kl if plan.effect.kl > 0 else 1.0
        # Who asks for bf16 gets it where the gap is below what the KL is good to.
        if found.kl <= max(MAX_ROUNDING_LOSS * plan.effect.kl, 1e-6 if dtype == "bf16" else 0.0):
            chosen, gap = "bf16", found
        elif dtype == "bf16":
            raise FidelityError(
                f"rounding to bf16 loses {lost:.0%} of the fine-tune",
                code="LK0502",
                where="merge",
                next="set merge.dtype: auto or fp32",
            )
        else:
            progress.note(f"merge: bf16 would round {lost:.0%} of this small fine-tune away; saving fp32")
    for path in (rounded if chosen == "bf16" else exact).iterdir():
        path.replace(out / path.name)
    for folder in (exact, rounded):
        shutil.rmtree(folder, ignore_errors=True)
    return chosen, gap


def _lay_out(folder: Path, base: _Base, tokenizer: Any, *, dtype: torch.dtype, eos_tokens: tuple[str, ...]) -> None:
    """Make `folder` a model of the base's kind, the weights aside."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = loading.load_config(base.folder)
    config.dtype = dtype
    config.architectures = config.architectures or [base.architecture]
    try:
        generation = GenerationConfig.from_pretrained(base.folder, local_files_only=True)
    except OSError:  # it has none
        generation = GenerationConfig.from_model_config(config)
    generation.eos_token_id = _eos_ids(generation.eos_token_id, tokenizer, eos_tokens)
    config.save_pretrained(folder)
    try:
        generation.save_pretrained(folder)
    except ValueError as error:
        raise DataError(
            f"the base's generation_config.json contradicts itself: {error}", code="LK0306", where=str(base.folder)
        ) from error
    tokenizer.save_pretrained(folder)


def _eos_ids(known: int | list[int] | None, tokenizer: Any, tokens: tuple[str, ...]) -> list[int]:
    ids = [known] if isinstance(known, int) else list(known or [])
    more = [tokenizer.convert_tokens_to_ids(token) for token in (*tokens, tokenizer.eos_token) if token]
    return list(dict.fromkeys([*ids, *more]))


def _prove(gap: probe.Difference, who: str) -> None:
    # Written so that a NaN fails too.
    if not gap.max_abs <= FP32_TOLERANCE:
        raise FidelityError(
            f"{who} differs from base + adapter by {gap.max_abs:.3g} in a logit (at most {FP32_TOLERANCE:g})",
            code="LK0501",
            where="merge",
            next="nothing was published; check that the adapter was trained on this base",
        )
