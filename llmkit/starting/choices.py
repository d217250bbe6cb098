"""What a first recipe says, and why, from what the data looks like. Knows a recipe's keys; writes no file.

Rules of thumb, not searches: each choice is a table or a line below, with the reason that goes into the recipe beside it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit import origin
from llmkit.errors import LlmkitError
from llmkit.starting.survey import Survey

CHARS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # what max_chars is chosen from
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)  # what max_length is chosen from
MOST = 0.99  # of the records must fit what is chosen
# A part of a hub id → the template of ours for a base without one of its own.
_TEMPLATES = {
    "gemma": "gemma",
    "llama-2": "llama2",
    "llama2": "llama2",
    "llama-3": "llama3",
    "mistral": "mistral",
    "phi-3": "phi3",
    "qwen": "qwen",
}
_CHATTY = re.compile(r"(?i)(^|[-_/])(it|chat|instruct|sft|dpo)([-_.\d]|$)")


@dataclass(frozen=True)
class Machine:
    """What a kind of machine asks for. `text`: how it is offered; the rest: key → (value, reason)."""

    text: str
    method: tuple[str, str]
    micro_batch: tuple[int, str]
    bits: tuple[int, ...]


MACHINES = {
    "laptop": Machine("no GPU", ("lora", "an adapter"), (2, "few records at once: memory is what a laptop lacks"), (8,)),
    "card": Machine(
        "one GPU of up to 24 GB",
        ("qlora", "an adapter over a 4-bit base, which leaves room on the card"),
        (2, "what fits a card; halved by itself where memory runs out"),
        (8, 4),
    ),
    "server": Machine(
        "one GPU of 40 GB or more",
        ("lora", "an adapter over the base in full precision"),
        (4, "what fits a large card; halved by itself where memory runs out"),
        (8, 4),
    ),
}


@dataclass(frozen=True)
class Choice:
    """One line of the recipe: a dotted key, its value as plain data, and why."""

    key: str
    value: Any
    reason: str


def choose(seen: Survey, *, path: str, model: str, why: str, machine: str) -> list[Choice]:
    """Every line of a recipe for this data.

    Args:
        seen: what `survey` found at `path`.
        path: as `data.sources` takes it.
        model: as `model` takes it, and `why` it is this one.
        machine: a key of `MACHINES`.
    """
    return [
        Choice("model", model, why),
        Choice("seed", 42, "fixed, so that a second run gives the same"),
        *_data(seen, path),
        *_clean(seen),
        *_finetune(seen, model, MACHINES[machine]),
        Choice("quantize", [{"bits": bits} for bits in MACHINES[machine].bits], "bitsandbytes: LLM.int8, and NF4 for 4 bits"),
        Choice("export.types", ["q8_0", "q4_k_m"], "GGUF for llama.cpp: as good as the original, and half of that size"),
        Choice("export.imatrix", True, "weighs rounding errors by your own training data"),
        Choice("eval.max_new_tokens", 256 if seen.code else 128, "tokens of an answer"),
        Choice("eval.max_samples", 200, "held-out dialogues: minutes, and intervals narrow enough to tell a loss"),
    ]


def _data(seen: Survey, path: str) -> Iterator[Choice]:
    yield Choice("data.sources", [{"path": path}], f"{seen.records:,} records, most of them {seen.format}")
    if seen.records < 5_000:
        yield Choice("data.split", {"train": 0.8, "valid": 0.1, "test": 0.1}, "few records: a tenth is needed to measure on")
    elif seen.records < 50_000:
        yield Choice("data.split", {"train": 0.9, "valid": 0.05, "test": 0.05}, "a twentieth is enough to measure on")
    else:
        yield Choice("data.split", {"train": 0.98, "valid": 0.01, "test": 0.01}, "a hundredth is enough to measure on")
    if _prefers(seen) and seen.paired < seen.looked_at:
        lacking = _share(1 - seen.paired / seen.looked_at)
        yield Choice("data.pairs", {"rejected": "shuffle"}, f"{lacking} of the records lack a rejected answer")


def _clean(seen: Survey) -> Iterator[Choice]:
    least = 3 if _at(seen.turns, 1 - MOST) >= 3 else 2 if seen.turns[-1] >= 2 else 1
    yield Choice("clean.min_turns", least, f"messages; here a dialogue has {_range(seen.turns)}")
    chars = _at(seen.chars, MOST)
    yield Choice("clean.max_chars", _least(CHARS, chars), f"a message; in 99 of 100 records the longest has {chars:,} or fewer")
    known = [name for name, part in seen.languages.items() if part >= 0.02 and name not in ("none", "other")]
    if known:
        told = ", ".join(f"{name} {_share(seen.languages[name])}" for name in known)
        yield Choice("clean.languages", known, f"by script: {told}")
    yield Choice("clean.dedup", {"near": 0.8}, "what says nearly the same is learnt once")
    if seen.personal:
        share = _share(seen.personal / seen.looked_at)
        yield Choice("clean.personal", {"action": "mask"}, f"phone numbers, e-mail and the like stand in {share} of them")
    bad = seen.unreadable / (seen.unreadable + seen.looked_at)
    if bad > 0.01:
        allowed = round(2 * bad, 2) if bad < 0.5 else 1.0
        yield Choice("clean.max_bad", allowed, f"{_share(bad)} of the lines cannot be read: look at them")


def _finetune(seen: Survey, model: str, machine: Machine) -> Iterator[Choice]:
    if _prefers(seen):
        why = f"{_share(seen.paired / seen.looked_at)} of the records bring a rejected answer"
        yield Choice("finetune.objective", "orpo", why)
    elif seen.paired:
        why = f"only {_share(seen.paired / seen.looked_at)} of the records bring a rejected answer"
        yield Choice("finetune.objective", "sft", why)
    else:
        yield Choice("finetune.objective", "sft", "the records bring no rejected answers")
    yield Choice("finetune.method", *machine.method)
    yield Choice("finetune.template", *_template(model))
    yield Choice("finetune.lora", {"rank": 16, "alpha": 32, "targets": "all-linear"}, "the usual start")
    epochs = 3 if seen.records < 2_000 else 2 if seen.records < 50_000 else 1
    yield Choice("finetune.epochs", epochs, "the fewer records, the more often each is read")
    yield Choice("finetune.batch_size", 8 if seen.records < 5_000 else 16, "records a step learns from")
    yield Choice("finetune.micro_batch", *machine.micro_batch)
    length = _least(LENGTHS, _at(seen.tokens, MOST))
    yield Choice("finetune.max_length", length, f"99 in 100 records have about {_at(seen.tokens, MOST):,} tokens or fewer")


def _prefers(seen: Survey) -> bool:
    """Whether the records are preference pairs, but for some."""
    return seen.paired >= 0.5 * seen.looked_at


def _template(model: str) -> tuple[str, str]:
    """The chat template for a base, and why: its own where it has one, else one of ours that its tokens fit."""
    from llmkit.engine import templates

    try:
        ready = origin.model(model).ready
    except LlmkitError:
        ready = None  # `llmkit validate` tells it, with the line
    if ready is not None:
        fitting = (name for name in ("model", *templates.OURS) if _fits(name, ready.path))
        name = next(fitting, "chatml")
        return name, "the base's own" if name == "model" else "the base has none of its own; its tokens fit this one"
    if _CHATTY.search(model):
        return "model", "the base's own, as its name promises one"
    name = next((ours for part, ours in _TEMPLATES.items() if part in model.lower()), "chatml")
    return name, "by the base's name; its own, if it has one, is `model`"


def _fits(name: str, folder: Any) -> bool:
    from llmkit.engine import templates

    try:
        templates.check(name, folder)
    except LlmkitError:
        return False
    return True


def _at(values: Sequence[int], share: float) -> int:
    """The value that this share of the sorted `values` does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _least(offered: Sequence[int], wanted: int) -> int:
    return next((one for one in offered if one >= wanted), offered[-1])


def _share(part: float) -> str:
    return f"{part:.0%}" if part >= 0.01 or not part else "under 1%"


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
