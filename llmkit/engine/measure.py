"""Measures one variant in a process of its own: its answers and its distance from the reference. Knows models, not metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit import memory, progress
from llmkit.engine import divergence, generate, loading
from llmkit.engine.divergence import Reference
from llmkit.engine.mask import Encoded, encode
from llmkit.engine.templates import ChatTemplate


@dataclass(frozen=True)
class Exam:
    """What every variant is asked. `prompts` are answered; `dialogues` (with their answers) give the KL."""

    prompts: Sequence[Sequence[Any]]
    dialogues: Sequence[Sequence[Any]]
    template: ChatTemplate
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """`kl`: mean KL(reference ‖ variant) in nats; None where there is nothing to compare with.

    `peak_memory_bytes`: host memory of loading and answering, without what measuring the KL adds.
    """

    answers: generate.Answers
    peak_memory_bytes: int
    kl: float | None
    runtime: str


def reference(folder: Path, exam: Exam, keep_in: Path, bar: progress.Bar) -> tuple[Measured, Reference]:
    """Measure the model that the others are compared with, and keep its hidden states in `keep_in`."""
    model, tokenizer = loading.load_model(folder), loading.load_tokenizer(folder)
    answers = _answer(model, tokenizer, exam, bar)
    peak = memory.peak_bytes()
    kept = divergence.remember(model, _encoded(exam, tokenizer), folder=keep_in, saved_as=folder)
    return Measured(answers, peak, None, _runtime(model)), kept


def variant(folder: Path, exam: Exam, against: Reference | None, bar: progress.Bar) -> Measured:
    """Measure a Hugging Face or bitsandbytes folder, with the reference's tokenizer: the exam's template is that one's."""
    model, tokenizer = loading.load_model(folder), loading.load_tokenizer(against.head if against else folder)
    answers = _answer(model, tokenizer, exam, bar)
    peak = memory.peak_bytes()
    kl = divergence.mean_kl(model, against) if against else None
    return Measured(answers, peak, kl, _runtime(model))


def _answer(model: Any, tokenizer: Any, exam: Exam, bar: progress.Bar) -> generate.Answers:
    return generate.answer(
        model,
        tokenizer,
        exam.prompts,
        template=exam.template,
        max_new_tokens=exam.max_new_tokens,
        batch_size=exam.batch_size,
        bar=bar,
    )


def _encoded(exam: Exam, tokenizer: Any) -> list[Encoded]:
    return [encode(messages, tokenizer, exam.template, last_only=True) for messages in exam.dialogues]


def _runtime(model: Any) -> str:
    quantized = getattr(model.config, "quantization_config", None)
    kind = "bitsandbytes" if quantized else f"transformers {str(model.dtype).removeprefix('torch.')}"
    return f"{kind} on {model.device.type}"
