"""Answers and measurements of every variant → the report and its samples. Knows scores; nothing of models or runtimes."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.artifact import Artifact
from llmkit.evaluation.measuring import Row
from llmkit.evaluation.questions import Question
from llmkit.metrics.text import Scores

FORMAT = 1
SHOWN_SOURCES = 20  # of the breakdown, the largest ones
Test = Callable[[str], bool]


@dataclass(frozen=True)
class Marked:
    """Every variant's answers as the metrics read them, and their scores, in the questions' order."""

    texts: Mapping[str, list[str]]
    scores: Mapping[str, Scores]

    @property
    def signatures(self) -> dict[str, str]:
        return dict(next(iter(self.scores.values())).signatures)


def mark(rows: Mapping[str, Row], questions: Sequence[Question], *, is_sensitive: Test | None, compat: Sequence[str]) -> Marked:
    """Score the answers of each variant; one that failed counts as an empty one.

    Raises:
        DataError: a reference is empty.
        MachineError: what `compat` needs is not installed.
    """
    from llmkit.data import quality
    from llmkit.metrics import text

    references = [question.reference for question in questions]
    texts = {name: [text.clean_output(one.text) for one in row.answers] for name, row in rows.items()}
    scores = {}
    for name, answers in texts.items():
        found = text.score(answers, references, is_refusal=quality.is_refusal, is_sensitive=is_sensitive)
        scores[name] = with_compat(found, answers, references, compat)
    return Marked(texts, scores)


def with_compat(scores: Scores, answers: Sequence[str], references: Sequence[str], flavours: Sequence[str]) -> Scores:
    """The scores with other tools' numbers beside them, labelled.

    Raises:
        UsageError: no such tool.
        MachineError: what it takes is not installed.
    """
    from llmkit.metrics import compat

    tallies, signatures = dict(scores.tallies), dict(scores.signatures)
    for flavour in flavours:
        tallies |= compat.tallies(flavour, answers, references)
        signatures |= compat.signatures(flavour)
    return replace(scores, tallies=tallies, signatures=signatures)


def report(rows: Mapping[str, Row], questions: Sequence[Question], marked: Marked, *, reference: str | None) -> dict[str, Any]:
    """The report but for its settings, gate and lineage: a row per variant, breakdowns, warnings."""
    models = {name: entry(row, marked.scores[name]) for name, row in rows.items()}
    _add_retention(models, reference)
    if reference:
        _add_drops(models, marked, reference)
    return {
        "format": FORMAT,
        "reference": reference,
        "n_samples": len(questions),
        "signatures": marked.signatures,
        "models": models,
        "breakdown": {
            "language": _breakdown([question.language for question in questions], marked),
            "source": _breakdown([question.source for question in questions], marked),
        },
        "tasks": _tasks(rows),
        "warnings": [warning for name, row in rows.items() for warning in _warnings(name, row, models[name])],
    }


def entry(row: Row, scores: Scores) -> dict[str, Any]:
    """A variant's row of the report; a measured number that is none (a damaged file's) is None."""
    from llmkit.metrics import bootstrap

    divergence = {key: _finite(value) for key, value in row.divergence.items()} if row.divergence else None
    perplexity = divergence.pop("perplexity", None) if divergence else None
    told = [one.log_probability for one in row.answers if one.log_probability is not None]
    intervals = bootstrap.intervals(list(scores.tallies.values()))
    return {
        "metrics": {name: _finite(value) for name, value in scores.metrics.items()},
        "intervals": {name: [_finite(low), _finite(high)] for name, (low, high) in intervals.items()},
        "perplexity": perplexity,
        "divergence": divergence if divergence and row.compared else None,
        "kl": divergence["mean"] if divergence and row.compared else None,
        "log_probability": _finite(sum(told) / len(told)) if told else None,
        "size_bytes": row.size_bytes,
        "tokens_per_second": row.tokens_per_second,
        "peak_memory_bytes": row.peak_memory_bytes,
        "stopped": sum(one.stopped for one in row.answers) / len(row.answers),
        "failed": row.failed,
        "n_samples": len(row.answers),
        "runtime": row.runtime,
        "batch_size": row.batch_size,
        "fingerprint": row.fingerprint,
        "changed": row.changed,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _add_retention(models: Mapping[str, dict[str, Any]], reference: str | None) -> None:
    """The share of the fine-tune that a variant kept; the base has none to keep, and numbers that are none prove nothing."""
    from llmkit.report import table

    base_kl = models[table.BASE]["kl"] if table.BASE in models else None
    for name, model in models.items():
        if name == table.BASE or reference is None:
            model["retention"] = None
        elif model["divergence"] is not None and model["kl"] is None:
            model["retention"] = 0.0
        else:
            model["retention"] = table.retention(0.0 if name == reference else model["kl"], base_kl)


def _add_drops(models: Mapping[str, dict[str, Any]], marked: Marked, reference: str) -> None:
    """How much worse each is than the reference, sample by sample: metric → [drop, low, high], 95 %."""
    from llmkit.metrics import bootstrap

    expected = marked.scores[reference].tallies
    for name, model in models.items():
        if name != reference:
            found = marked.scores[name].tallies
            shared = [metric for metric in expected if metric in found]
            pairs = bootstrap.paired_many([(expected[metric], found[metric]) for metric in shared])
            drops = [[_finite(one.drop), _finite(one.low), _finite(one.high)] for one in pairs]
            model["drops"] = dict(zip(shared, drops, strict=True))


def _warnings(name: str, row: Row, model: Mapping[str, Any]) -> Iterator[str]:
    from llmkit.report import table

    if row.changed:
        yield f"{name} is not the file that export wrote: its content has changed since"
    if model["divergence"] is not None and model["kl"] is None:
        yield f"{name} is damaged: its probabilities are no numbers"
    elif table.lost_fine_tune(name, model):
        kept = model["retention"]
        told = f"it kept {kept:.0%} of it" if kept > 0 else "it is as far from it as the base, or farther"
        yield f"{name} lost the fine-tune: {told} (retention {kept:.3f})"
    if row.failed:
        why = next(one.failure for one in row.answers if one.failure)
        yield f"{name} gave no answer to {row.failed} of {len(row.answers)} prompts, which score 0; the first: {why}"


def _breakdown(groups: Sequence[str], marked: Marked) -> dict[str, Any]:
    """Scores within each group of samples, the largest groups first; nothing where all are in one."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        places[group].append(index)
    largest = sorted(places, key=lambda group: (-len(places[group]), group))[:SHOWN_SOURCES]
    if len(largest) < 2:
        return {}
    return {
        group: {
            "n_samples": len(places[group]),
            "models": {name: _within(scores, places[group]) for name, scores in marked.scores.items()},
        }
        for group in largest
    }


def _within(scores: Scores, places: Sequence[int]) -> dict[str, float | None]:
    found = {name: tally for name, tally in scores.tallies.items() if tally.point is None}
    return {name: _finite(float(tally.value(tally.counts[list(places)].sum(axis=0)))) for name, tally in found.items()}


def _tasks(rows: Mapping[str, Row]) -> dict[str, Any]:
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, row in rows.items():
        for task, scores in row.tasks.items():
            found[task][name] = {metric: _finite(value) for metric, value in scores.items() if metric != "samples"}
    return dict(found)


def lineage(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Where everything measured comes from: each input's step, its own inputs' fingerprints and what it says of itself."""
    return [
        {
            "name": role,
            "step": given.manifest.step,
            "kind": str(given.manifest.kind),
            "fingerprint": given.fingerprint,
            "inputs": dict(given.manifest.inputs),
            "origin": given.manifest.config.get("origin"),
        }
        for role, given in inputs.items()
    ]


def samples(rows: Mapping[str, Row], questions: Sequence[Question], marked: Marked) -> Iterator[dict[str, Any]]:
    """A line for each question: every variant's answer, its ROUGE-L, and why there is none where there is none."""
    alone = {name: scores.tallies["rougeL"].samples for name, scores in marked.scores.items()}
    for index, question in enumerate(questions):
        failures = {name: row.answers[index].failure for name, row in rows.items() if row.answers[index].failure}
        yield {
            "id": question.id,
            "prompt": question.prompt,
            "reference": question.reference,
            "language": question.language,
            "source": question.source,
            "answers": {name: texts[index] for name, texts in marked.texts.items()},
            "scores": {name: round(float(values[index]), 4) for name, values in alone.items()},
            **({"failures": failures} if failures else {}),
        }


def write_samples(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines; half a surrogate pair, which a model can say and UTF-8 cannot, is written as an escape."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
