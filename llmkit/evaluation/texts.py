"""Scores of texts that are already there: no model, no torch. Knows the two files; asks nothing of anyone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit import artifact
from llmkit.evaluation import summary

NAME = "predictions"


def score_files(
    predictions: Path, references: Path, *, compat: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A report with one row, and its samples, as `compare` reads them.

    `compat`: tools whose own numbers stand beside ours, labelled.

    Raises:
        DataError: the files do not hold the same ids, or a line is not `{"id", "text"}`.
        MachineError: what `compat` needs is not installed.
    """
    from llmkit.data import quality
    from llmkit.metrics import bootstrap, pairs, text

    found = pairs.read_pairs(predictions, references)
    answers, expected = [text.clean_output(one.hypothesis) for one in found], [one.reference for one in found]
    scores = summary.with_compat(text.score(answers, expected, is_refusal=quality.is_refusal), answers, expected, compat)
    model = {
        "metrics": dict(scores.metrics),
        "intervals": {name: list(ends) for name, ends in bootstrap.intervals(list(scores.tallies.values())).items()},
        "n_samples": len(found),
    }
    report = {
        "format": summary.FORMAT,
        "reference": NAME,
        "n_samples": len(found),
        "settings": {},
        "signatures": dict(scores.signatures),
        "models": {NAME: model},
    }
    samples = [
        {"id": one.id, "prompt": [], "reference": one.reference, "answers": {NAME: answer}}
        for one, answer in zip(found, answers, strict=True)
    ]
    return report, samples


def write(report: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """report.json and samples.jsonl, into a folder that is there."""
    artifact.write_json(folder / "report.json", report)
    summary.write_samples(folder / "samples.jsonl", samples)
