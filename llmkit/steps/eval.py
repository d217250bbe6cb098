"""eval: a DATASET's test split and every variant of a model → REPORT. Each variant answers in its own runtime.

`report.json` has a row per variant; `samples.jsonl` has every prompt, its reference and all answers.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llmkit import artifact, progress
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import DataError

VERB = "eval"
REVISION = 1
KIND = Kind.REPORT
# Dialogues whose answers' tokens give the KL; more would sharpen it little and cost minutes on a laptop.
KL_DIALOGUES = 40


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    max_new_tokens: int = Field(48, ge=1, description="The longest answer, in tokens.")
    max_samples: int | None = Field(None, ge=1, description="At most so many test dialogues, the first ones; None: all.")
    batch_size: int = Field(32, ge=1, description="Prompts answered at once by a Hugging Face model.")


@dataclass(frozen=True)
class Question:
    """A test dialogue: what is asked, and what the data answers."""

    id: str
    prompt: list[dict[str, str]]
    reference: str

    @property
    def dialogue(self) -> list[dict[str, str]]:
        return [*self.prompt, {"role": "assistant", "content": self.reference}]


@dataclass(frozen=True)
class Row:
    """What was measured of one variant. `stopped`: share of answers that ended by themselves; the memory is its process's."""

    answers: list[str]
    stopped: float
    tokens_per_second: float
    peak_memory_bytes: int
    size_bytes: int
    kl: float | None
    runtime: str


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Answer, score, compare, report.

    Raises:
        DataError: the test split is empty.
        MachineError: a variant's process died.
    """
    from llmkit.report import table

    questions = _questions(inputs["dataset"].path / "test.jsonl", config.max_samples)
    rows = dict(_measure(config, inputs, questions, out))
    report = summarise(rows, questions, reference="merged" if "merged" in inputs else "base")
    report["settings"] = {
        **config.model_dump(mode="json"),
        "decoding": "greedy",
        "kl_dialogues": min(KL_DIALOGUES, len(questions)),
    }
    artifact.write_json(out / "report.json", report)
    (out / "report.md").write_text(table.markdown(report) + "\n", encoding="utf-8")
    _write_samples(out / "samples.jsonl", questions, rows)
    for warning in report["warnings"]:
        progress.note(f"warning: {warning}")
    return {"n_samples": len(questions), "variants": list(rows), "warnings": report["warnings"]}


def score_files(predictions: Path, references: Path) -> dict[str, Any]:
    """Scores of texts that are already there; needs no model and no torch.

    Raises:
        DataError: the files do not hold the same ids, or a line is not `{"id", "text"}`.
    """
    from llmkit.metrics import pairs, text

    found = pairs.read_pairs(predictions, references)
    scores = text.score([text.clean_output(pair.hypothesis) for pair in found], [pair.reference for pair in found])
    return {"metrics": dict(scores.metrics), "signatures": dict(scores.signatures), "n_samples": len(found)}


def summarise(rows: Mapping[str, Row], questions: Sequence[Question], *, reference: str) -> dict[str, Any]:
    """The report: scores, sizes, speeds and retention for each variant, and what to be warned of."""
    from llmkit.metrics import text
    from llmkit.report import table

    expected = [question.reference for question in questions]
    base_kl = rows["base"].kl if "base" in rows else None
    models, signatures, warnings = {}, {}, []
    for name, row in rows.items():
        scores = text.score(row.answers, expected)
        signatures = dict(scores.signatures)
        kept = _retention(name, row, base_kl, reference)
        models[name] = {
            "metrics": dict(scores.metrics),
            "size_bytes": row.size_bytes,
            "tokens_per_second": row.tokens_per_second,
            "peak_memory_bytes": row.peak_memory_bytes,
            "retention": kept,
            "kl": row.kl,
            "stopped": row.stopped,
            "runtime": row.runtime,
            "n_samples": len(questions),
        }
        if table.lost_fine_tune(name, models[name]):
            warnings.append(f"{name} lost the fine-tune: it kept {kept:.0%} of it (retention {kept:.3f})")
    return {
        "reference": reference,
        "n_samples": len(questions),
        "models": models,
        "signatures": signatures,
        "warnings": warnings,
    }


def _retention(name: str, row: Row, base_kl: float | None, reference: str) -> float | None:
    """The share of the fine-tune that a variant kept; the base has none to keep."""
    from llmkit.report import table

    return None if name == table.BASE else table.retention(0.0 if name == reference else row.kl, base_kl)


def _questions(path: Path, limit: int | None) -> list[Question]:
    from llmkit.data import record

    found = []
    for one in record.read_records(path):
        messages = [dict(message) for message in one.messages]
        if messages and messages[-1]["role"] == "assistant" and len(messages) > 1:
            found.append(Question(one.id, messages[:-1], messages[-1]["content"]))  # type: ignore[arg-type]
        if limit and len(found) == limit:
            break
    if not found:
        raise DataError(
            "the test split is empty", where=str(path), next="give clean more dialogues, or data.split a larger test share"
        )
    return found


def _measure(
    config: Config, inputs: Mapping[str, Artifact], questions: Sequence[Question], out: Path
) -> Iterator[tuple[str, Row]]:
    """A row per variant: base, merged, the bitsandbytes folders, then each GGUF file. The reference is measured first."""
    from llmkit.engine import child, measure, templates

    reference = "merged" if "merged" in inputs else "base"
    folder = inputs[reference].path
    exam = measure.Exam(
        prompts=[question.prompt for question in questions],
        dialogues=[question.dialogue for question in questions[:KL_DIALOGUES]],
        template=templates.resolve("model", folder),
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    scratch = out / "reference.npy"
    measured, kept = child.run(measure.reference, folder, exam, out, title=f"eval {reference}", total=len(questions))
    rows = {reference: _row(measured, inputs[reference].size_bytes)}
    quantized = [name for name in inputs if name not in ("dataset", "base", "merged", "gguf", "adapter")]
    for name in ("base", *quantized):
        if name in inputs and name != reference:
            measured = child.run(measure.variant, inputs[name].path, exam, kept, title=f"eval {name}", total=len(questions))
            rows[name] = _row(measured, inputs[name].size_bytes)
    order = ("base", "merged", *quantized)
    yield from sorted(rows.items(), key=lambda item: order.index(item[0]))
    if "gguf" in inputs:
        for name, files in sorted(_gguf_files(inputs["gguf"]).items(), key=lambda item: -item[1].size_bytes):
            yield name, _gguf_row(name, files, exam, kept, inputs)
    scratch.unlink()


@dataclass(frozen=True)
class GgufFiles:
    """What llama.cpp is given: a model's file, or the first of its parts, and the LoRA over it."""

    path: Path
    size_bytes: int
    adapter: Path | None = None


def _gguf_files(found: Artifact) -> dict[str, GgufFiles]:
    """By type; the base under its adapter as TYPE+lora."""
    files = {kind: GgufFiles(found.path / facts["files"][0], facts["bytes"]) for kind, facts in found.facts["types"].items()}
    lora = found.facts.get("adapter")
    if lora:
        path, base = found.path / lora["file"], lora["base"]
        size = base["bytes"] + path.stat().st_size
        files[f"{base['type']}+lora"] = GgufFiles(found.path / base["files"][0], size, path)
    return files


def _row(measured: Any, size: int) -> Row:
    from llmkit.metrics.text import clean_output

    answers = measured.answers
    return Row(
        answers=[clean_output(one.text) for one in answers.items],
        stopped=sum(one.stopped for one in answers.items) / len(answers.items),
        tokens_per_second=answers.tokens_per_second,
        peak_memory_bytes=measured.peak_memory_bytes,
        size_bytes=size,
        kl=measured.kl,
        runtime=measured.runtime,
    )


def _gguf_row(name: str, files: GgufFiles, exam: Any, kept: Any, inputs: Mapping[str, Artifact]) -> Row:
    """Answers from llama.cpp through the file's own tokenizer and template; KL from its dequantized weights."""
    from llmkit.engine import child, retention
    from llmkit.gguf import read, runtime
    from llmkit.metrics.text import clean_output

    context = max(runtime.room(prompt, exam.max_new_tokens) for prompt in exam.prompts)
    answers = []
    with (
        runtime.LlamaServer(files.path, threads=os.cpu_count() or 1, context=context, adapter=files.adapter) as server,
        progress.track(f"eval {name}", total=len(exam.prompts)) as bar,
    ):
        started = time.perf_counter()
        for one in server.chat_many(exam.prompts, max_tokens=exam.max_new_tokens):
            answers.append(one)
            bar.advance()
        seconds = time.perf_counter() - started
        peak = server.peak_memory_bytes
    tuned = inputs["adapter"].path if files.adapter else None
    folder = inputs["base"].path if files.adapter else kept.head
    weighed = child.run(
        retention.weigh, partial(read.state_dict, files.path), folder, tuned, kept, (), title=f"KL {name}", total=1
    )
    # The EOS that ends an answer is generated as well, though llama.cpp does not hand it out.
    tokens = sum(len(one.tokens) + one.stopped for one in answers)
    return Row(
        answers=[clean_output(one.text) for one in answers],
        stopped=sum(one.stopped for one in answers) / len(answers),
        tokens_per_second=tokens / seconds,
        peak_memory_bytes=peak,
        size_bytes=files.size_bytes,
        kl=weighed.kl,
        runtime="llama.cpp on cpu",
    )


def _write_samples(path: Path, questions: Sequence[Question], rows: Mapping[str, Row]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for index, question in enumerate(questions):
            answers = {name: row.answers[index] for name, row in rows.items()}
            sample = {"id": question.id, "prompt": question.prompt, "reference": question.reference, "answers": answers}
            stream.write(json.dumps(sample, ensure_ascii=False) + "\n")
