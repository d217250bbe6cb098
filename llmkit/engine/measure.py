"""Measures one variant in a process of its own: its answers, its distance from the reference and its benchmarks.

Knows models and stores; neither metrics nor how a benchmark is scored.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from llmkit import memory, progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.engine import divergence, generate, loading
from llmkit.engine.divergence import Divergence, Reference
from llmkit.engine.mask import Encoded, encode_all
from llmkit.engine.templates import ChatTemplate

LONGEST = 8192  # tokens of a dialogue that the divergence is measured on; the oldest turns go first
PEAK = "peak_memory_bytes"  # the note's name in a store
Tasks = Mapping[str, Mapping[str, float]]
Runtime = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class Quiz:
    """Prompts that are answered in one way. `keys` name the answers in the quiz's store, one each."""

    name: str
    prompts: Sequence[Sequence[Any]]
    keys: Sequence[str]
    decoding: Decoding


@dataclass(frozen=True)
class Exam:
    """What every variant is asked.

    `dialogues`, with their answers, give perplexity and divergence; `batch_size`: None for what fits; `tasks`: the keyword
    arguments of `harness.evaluate_tasks` beside model, tokenizer and template; `runtime`: what generates.
    """

    quizzes: Sequence[Quiz]
    dialogues: Sequence[Sequence[Any]]
    template: ChatTemplate
    batch_size: int | None = None
    tasks: Mapping[str, Any] | None = None
    runtime: Runtime = "transformers"


@dataclass(frozen=True)
class Measured:
    """`answers`: by quiz, in its prompts' order; `divergence`: None where there is nothing to compare with.

    `peak_memory_bytes`: of loading and answering, without what the rest adds: the process's largest resident set, or on a GPU
    what torch held there; `batch_size`: the most prompts at once, None where the runtime decides from step to step.
    """

    answers: Mapping[str, list[Answer]]
    peak_memory_bytes: int
    divergence: Divergence | None
    runtime: str
    batch_size: int | None
    tasks: Tasks | None = None


def reference(
    folder: Path, exam: Exam, stores: Mapping[str, Path], keep_in: Path, bar: progress.Bar
) -> tuple[Measured, Reference | None]:
    """Measure the model that the others are compared with, and keep its hidden states in `keep_in`.

    Its divergence holds its own perplexity. `stores`: by quiz, where there is one; the bar is advanced once a prompt. Without
    a dialogue to compare on there is no divergence and no `Reference`.

    Raises: as `generate.answer`, `divergence.remember` and `loading.load_model`.
    """
    sitting = _Sitting(folder, loading.load_tokenizer(folder), exam, bar)
    answered = sitting.answer(stores)
    model = sitting.model
    samples = _encoded(exam, sitting.tokenizer, generate.context(model))
    kept = divergence.remember(model, samples, folder=keep_in, saved_as=folder) if samples else None
    return sitting.measured(answered, kept.divergence if kept else None), kept


def variant(folder: Path, exam: Exam, against: Reference | None, stores: Mapping[str, Path], bar: progress.Bar) -> Measured:
    """Measure a Hugging Face or bitsandbytes folder, with the reference's tokenizer: the exam's template is that one's.

    Raises: as `generate.answer`, `divergence.measure` and `loading.load_model`.
    """
    sitting = _Sitting(folder, loading.load_tokenizer(against.head if against else folder), exam, bar)
    answered = sitting.answer(stores)
    return sitting.measured(answered, divergence.measure(sitting.model, against) if against else None)


def evaluate_tasks(model: Any, tokenizer: Any, exam: Exam) -> Tasks | None:
    """The exam's benchmarks, None where it has none."""
    if not exam.tasks:
        return None
    from llmkit.engine import harness  # what it needs is an extra, and takes seconds to import

    found: Tasks = harness.evaluate_tasks(model, tokenizer, template=exam.template, **exam.tasks)
    return found


@dataclass(frozen=True)
class _Answered:
    answers: Mapping[str, list[Answer]]
    peak_memory_bytes: int
    batch_size: int | None


@dataclass
class _Sitting:
    """One model and its exam. The model is loaded when first asked for: vLLM needs the memory before that."""

    folder: Path
    tokenizer: Any
    exam: Exam
    bar: progress.Bar
    _model: Any = field(default=None, init=False)

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = loading.load_model(self.folder)
        return self._model

    def answer(self, stores: Mapping[str, Path]) -> _Answered:
        """All quizzes, each from its store or anew. The peak is kept in the stores: a run that finds all answers knows it."""
        found: dict[str, list[Answer]] = {}
        sizes, peak = [0], 0
        with ExitStack() as stack:
            opened = {name: stack.enter_context(Store(path)) for name, path in stores.items()}
            for quiz in self.exam.quizzes:
                store = opened.get(quiz.name)
                kept = len(store) if store is not None else 0
                answers = self._ask(quiz, store)
                found[quiz.name] = answers.items
                sizes.append(answers.batch_size)
                peak = max(peak, self._peak(store, kept))
        return _Answered(found, peak, max(sizes) or None)

    def _ask(self, quiz: Quiz, store: Store | None) -> generate.Answers:
        if self.exam.runtime == "vllm":
            from llmkit.engine import vllm

            return vllm.answer(
                self.folder,
                self.tokenizer,
                quiz.prompts,
                template=self.exam.template,
                decoding=quiz.decoding,
                store=store,
                bar=self.bar,
                keys=quiz.keys,
            )
        return generate.answer(
            self.model,
            self.tokenizer,
            quiz.prompts,
            template=self.exam.template,
            decoding=quiz.decoding,
            batch_size=self.exam.batch_size,
            store=store,
            bar=self.bar,
            keys=quiz.keys,
        )

    def _peak(self, store: Store | None, kept: int) -> int:
        """This process's, or, where it generated nothing that was not `kept` before, that of the one which did."""
        known = store.noted(PEAK) if store is not None and len(store) == kept else None
        if isinstance(known, int):
            return known
        # vLLM's own process holds what it takes, and it takes all it is given.
        on_gpu = torch.cuda.is_available() and self.exam.runtime != "vllm"
        peak = torch.cuda.max_memory_reserved() if on_gpu else memory.peak_bytes()
        if store is not None:
            store.note(PEAK, peak)
        return peak

    def measured(self, answered: _Answered, found: Divergence | None) -> Measured:
        return Measured(
            answered.answers,
            answered.peak_memory_bytes,
            found,
            _runtime(self.model, self.exam.runtime),
            answered.batch_size,
            evaluate_tasks(self.model, self.tokenizer, self.exam),
        )


def _encoded(exam: Exam, tokenizer: Any, context: int | None) -> list[Encoded]:
    records = [{"id": str(number), "messages": messages} for number, messages in enumerate(exam.dialogues)]
    longest = min(context or LONGEST, LONGEST)
    found = encode_all(records, tokenizer, exam.template, max_length=longest, on_overlong="truncate_left", loss_on="last")
    if found.overlong or found.forged:
        progress.note(
            f"warning: perplexity and KL leave out {found.overlong} dialogues whose answer is over {longest} tokens, and "
            f"{found.forged} that spell a special token"
        )
    return found.items


def _runtime(model: Any, runtime: Runtime) -> str:
    if runtime == "vllm":
        return f"vllm on {model.device.type}"
    quantized = getattr(model.config, "quantization_config", None)
    kind = "bitsandbytes" if quantized else f"transformers {str(model.dtype).removeprefix('torch.')}"
    return f"{kind} on {model.device.type}"
