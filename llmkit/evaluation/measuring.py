"""Measures each variant in its own runtime, and only what was not measured before. Knows runtimes and the cache; no scores.

What a variant said is kept in a folder that all runs share, named by the content of its files, its template, how tokens are
chosen and the versions of what ran: a killed evaluation goes on where it was, and nothing is answered twice.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import artifact, endpoint, progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.errors import UsageError
from llmkit.evaluation.variants import Folder, Gguf, Remote, Variant

if TYPE_CHECKING:
    from llmkit.engine.divergence import Reference
    from llmkit.engine.measure import Exam, Runtime
    from llmkit.engine.templates import ChatTemplate

# Raised where answers or measurements of the same model would come out otherwise than before.
REVISION = 1
_VERSIONS = {"transformers": ("torch", "transformers", "bitsandbytes"), "vllm": ("vllm",), "llama.cpp": ("xllamacpp",)}
DIALOGUES = "dialogues"
_PEAK = "peak_memory_bytes"
_FAILURES = "failures"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


# Speeds are kept with the answers, and a folder may be shared by machines of several kinds.
_MACHINE = [platform.machine(), os.cpu_count(), Path("/dev/nvidia0").exists()]


@dataclass(frozen=True)
class Quiz:
    """Conversations to be answered, with the keys of their answers."""

    prompts: Sequence[Sequence[Any]]
    keys: Sequence[str]
    decoding: Decoding


@dataclass(frozen=True)
class Plan:
    """What every variant is asked.

    `quizzes`: by name, DIALOGUES among them; `dialogues`, with their answers, give perplexity and KL; `tasks`: the arguments
    of `harness.evaluate_tasks`, and `tasks_content` names what their files hold; `runtime`: what runs Hugging Face folders;
    `batch_size`, `slots`: None for what fits.
    """

    quizzes: Mapping[str, Quiz]
    dialogues: Sequence[Sequence[Any]]
    batch_size: int | None
    slots: int | None
    runtime: "Runtime"
    tasks: Mapping[str, Any] | None = None
    tasks_content: str = ""


@dataclass(frozen=True)
class Row:
    """What was measured of one variant.

    `quizzes`: the answers of each, `answers` those to the dialogues; `divergence`: see engine/divergence; `compared`: there is
    another model that it is a distance from; `changed`: the files are not those that were published.
    """

    quizzes: Mapping[str, list[Answer]]
    runtime: str
    fingerprint: str
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    batch_size: int | None = None
    divergence: Mapping[str, Any] | None = None
    compared: bool = False
    changed: bool = False
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def answers(self) -> list[Answer]:
        return self.quizzes[DIALOGUES]

    @property
    def failed(self) -> int:
        return sum(bool(one.failure) for one in self.answers)

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(one.seconds for one in self.answers)
        return sum(one.tokens for one in self.answers) / seconds if seconds else None


class Bench:
    """One evaluation: its plan, the reference that variants are compared with, and where answers are kept.

    `template`: what Hugging Face folders are asked with; `scratch`: the run's own folder, emptied by who owns it; `cache`: the
    folder that all runs share.
    """

    def __init__(
        self, plan: Plan, reference: Folder | None, template: "ChatTemplate | None", *, scratch: Path, cache: Path
    ) -> None:
        self._plan = plan
        self._reference = reference
        self._template = template
        self._scratch = scratch
        self._cache = cache
        self._against: Reference | None = None
        self._slots_of: dict[str, int] = {}

    def rows(self, variants: Sequence[Variant]) -> dict[str, Row]:
        """A row per variant, in their order; the reference is measured first, if anything has to be.

        Raises:
            MachineError: a variant's process died, or an endpoint answered nothing.
        """
        rows = {one.name: row for one in variants if (row := self._known(one))}
        missing = [one for one in variants if one.name not in rows]
        reference = self._reference
        if reference and reference not in missing and any(not isinstance(one, Remote) for one in missing):
            missing.append(reference)  # what the others are compared with is not kept
        for one in sorted(missing, key=lambda one: one is not reference):
            rows[one.name] = self._measured(one)
        return {one.name: rows[one.name] for one in variants}

    def _measured(self, variant: Variant) -> Row:
        if isinstance(variant, Remote):
            return self._ask_endpoint(variant)
        row = self._run_gguf(variant) if isinstance(variant, Gguf) else self._run_folder(variant)
        noted = {key: value for key, value in asdict(row).items() if key != "quizzes"}
        # What does not fit will not fit the next time either; what a store holds has no failures.
        noted[_FAILURES] = {name: self._failures(name, found) for name, found in row.quizzes.items()}
        with Store(self._place(variant, DIALOGUES)) as store:
            store.note(self._measurement, noted)
        return row

    def _failures(self, quiz: str, found: Sequence[Answer]) -> dict[str, str]:
        return {key: one.failure for key, one in zip(self._plan.quizzes[quiz].keys, found, strict=True) if one.failure}

    # What was measured before.

    def _known(self, variant: Variant) -> Row | None:
        """The row of a variant whose answers and measurements are all in the cache."""
        if isinstance(variant, Remote):
            return None
        with Store(self._place(variant, DIALOGUES)) as store:
            noted = store.noted(self._measurement)
        if not noted:
            return None
        failures = noted.pop(_FAILURES)
        quizzes = {name: self._kept(variant, name, failures.get(name, {})) for name in self._plan.quizzes}
        if any(len(found) < len(self._plan.quizzes[name].keys) for name, found in quizzes.items()):
            return None
        return Row(quizzes, **{**noted, "changed": variant.changed})

    def _kept(self, variant: Variant, quiz: str, failures: Mapping[str, str]) -> list[Answer]:
        failed = {key: Answer("", 0, stopped=False, seconds=0.0, failure=why) for key, why in failures.items()}
        with Store(self._place(variant, quiz)) as store:
            found = [store.get(key) or failed.get(key) for key in self._plan.quizzes[quiz].keys]
        return [one for one in found if one]

    @cached_property
    def _measurement(self) -> str:
        """Names what was measured beside the answers: against which reference, on what, by what. A GGUF file's as well."""
        against = self._reference.fingerprint if self._reference else None
        dialogues = [[[one["role"], one["content"]] for one in messages] for messages in self._plan.dialogues]
        plan = self._plan
        name = artifact.digest(REVISION, _versions("transformers"), against, dialogues, plan.tasks, plan.tasks_content)
        return f"measured {name}"

    def _place(self, variant: Variant, quiz: str) -> Path:
        """The file of a variant's answers: an endpoint's in the run's own folder, for it may change behind our back."""
        decoding = asdict(self._plan.quizzes[quiz].decoding)
        if isinstance(variant, Remote):
            return self._scratch / f"{artifact.digest(variant.fingerprint, decoding)[:32]}.jsonl"
        runtime = "llama.cpp" if isinstance(variant, Gguf) else self._plan.runtime
        more = self._circumstances(variant, quiz)
        name = artifact.digest(REVISION, variant.fingerprint, _versions(runtime), _MACHINE, decoding, more)
        return self._cache / "answers" / f"{name[:32]}.jsonl"

    def _circumstances(self, variant: Folder | Gguf, quiz: str) -> object:
        """What else can change a text. A GGUF file holds its template; in half precision the rest of a batch matters."""
        if isinstance(variant, Gguf):
            return self._slots(variant)
        return [self._spelling, self._plan.batch_size, list(self._plan.quizzes[quiz].keys)]

    @cached_property
    def _spelling(self) -> object:
        """What makes tokens of a conversation for every Hugging Face folder: the reference's template and tokenizer."""
        assert self._reference  # as its template
        files = [path for name in _TOKENIZER if (path := self._reference.path / name).is_file()]
        return [asdict(self._chat_template), {path.name: artifact.sha256_file(path) for path in files}]

    # In its runtime.

    def _run_folder(self, variant: Folder) -> Row:
        from llmkit.engine import child, measure

        stores = {name: self._place(variant, name) for name in self._plan.quizzes}
        title, total = f"eval {variant.name}", self._prompts
        if variant is self._reference:
            job = (measure.reference, variant.path, self._exam, stores, self._scratch)
            measured, self._against = child.run(*job, title=title, total=total)
        else:
            measured = child.run(measure.variant, variant.path, self._exam, self._against, stores, title=title, total=total)
        return Row(
            measured.answers,
            measured.runtime,
            variant.fingerprint,
            variant.size_bytes,
            measured.peak_memory_bytes,
            measured.batch_size,
            asdict(measured.divergence) if measured.divergence else None,
            compared=self._reference is not None and variant is not self._reference,
            changed=variant.changed,
            tasks=measured.tasks or {},
        )

    def _run_gguf(self, variant: Gguf) -> Row:
        """Answers from llama.cpp through the file's own tokenizer and template; the rest from its dequantized weights."""
        from llmkit.engine import child, retention
        from llmkit.gguf import read

        answered = self._ask_llama(variant)
        folder = variant.head if variant.tuned or not self._against else self._against.head
        if folder is None or not (self._against or self._plan.tasks):
            return answered
        weigh = partial(retention.weigh, exam=self._exam)
        state = partial(read.state_dict, variant.path)
        weighed = child.run(weigh, state, folder, variant.tuned, self._against, (), title=f"KL {variant.name}", total=1)
        divergence = asdict(weighed.divergence) if weighed.divergence else None
        return replace(answered, divergence=divergence, compared=True, tasks=weighed.tasks or {})

    def _ask_llama(self, variant: Gguf) -> Row:
        from llmkit.gguf import runtime

        slots = self._slots(variant)
        longest = max(runtime.room(prompt, quiz.decoding.max_new_tokens) for quiz in self._quizzes for prompt in quiz.prompts)
        trained, asked = runtime.trained_context(variant.path), max(quiz.decoding.max_new_tokens for quiz in self._quizzes)
        if trained and asked >= trained:
            raise UsageError(
                f"answers of {asked} tokens leave no room for the question: the whole context is {trained}",
                code="LK0711",
                where=str(variant.path),
                next="lower eval.max_new_tokens",
            )
        server = runtime.LlamaServer(
            variant.path,
            threads=os.cpu_count() or 1,
            context=min(longest, trained or longest),
            slots=slots,
            exact_attention=runtime.is_exact(variant.path),  # else texts would depend on the slots
            adapter=variant.adapter,
        )
        quizzes = {}
        with server, progress.track(f"eval {variant.name}", total=self._prompts) as bar:
            for name, quiz in self._plan.quizzes.items():
                with Store(self._place(variant, name)) as store:
                    quizzes[name] = server.answer_many(
                        quiz.prompts, decoding=quiz.decoding, keys=quiz.keys, store=store, bar=bar
                    )
            peak = server.peak_memory_bytes
        with Store(self._place(variant, DIALOGUES)) as store:
            # A process that went on after a kill had less to answer.
            peak = max(peak, store.noted(_PEAK) or 0)
            store.note(_PEAK, peak)
        return Row(quizzes, "llama.cpp on cpu", variant.fingerprint, variant.size_bytes, peak, slots, changed=variant.changed)

    def _slots(self, variant: Gguf) -> int:
        """Looked up once: it takes reading the file's header, vocabulary and all, and names each of its stores."""
        from llmkit.gguf import runtime

        if variant.name not in self._slots_of:
            self._slots_of[variant.name] = self._plan.slots or runtime.slots_for(variant.path)
        return self._slots_of[variant.name]

    def _ask_endpoint(self, variant: Remote) -> Row:
        quizzes = {}
        with progress.track(f"eval {variant.name}", total=self._prompts) as bar:
            for name, quiz in self._plan.quizzes.items():
                with Store(self._place(variant, name)) as store:
                    quizzes[name] = endpoint.answer_many(
                        variant.endpoint, quiz.prompts, decoding=quiz.decoding, keys=quiz.keys, store=store, bar=bar
                    )
        return Row(quizzes, variant.endpoint.url.partition("?")[0], variant.fingerprint)  # a query may hold a secret

    @property
    def _quizzes(self) -> Sequence[Quiz]:
        return list(self._plan.quizzes.values())

    @property
    def _prompts(self) -> int:
        return sum(len(quiz.keys) for quiz in self._quizzes)

    @property
    def _chat_template(self) -> "ChatTemplate":
        assert self._template  # a Hugging Face folder has one, or the evaluation was refused
        return self._template

    @cached_property
    def _exam(self) -> "Exam":
        from llmkit.engine import measure

        plan = self._plan
        quizzes = [measure.Quiz(name, quiz.prompts, quiz.keys, quiz.decoding) for name, quiz in plan.quizzes.items()]
        return measure.Exam(quizzes, plan.dialogues, self._chat_template, plan.batch_size, plan.tasks, plan.runtime)


def _versions(runtime: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in _VERSIONS[runtime]}
