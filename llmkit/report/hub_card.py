"""The card of what is pushed to a hub: README.md for an adapter, a model, a quantized model, GGUF files or a dataset.

Front matter follows https://huggingface.co/docs/hub/model-cards and /datasets-cards; measured numbers stand in its model-index.
Names come from strangers' files, and are escaped as in `card`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkit.report.card import escaped, told, visible, yaml_value

_LIBRARY = {"adapter": "peft", "model": "transformers", "quantized": "transformers", "gguf": "gguf"}
_TAGS = {"adapter": ["lora"], "model": [], "quantized": ["bitsandbytes"], "gguf": ["gguf"], "dataset": []}
_WHAT = {
    "adapter": "A LoRA adapter",
    "model": "A chat model",
    "quantized": "A quantized chat model (bitsandbytes)",
    "gguf": "GGUF files for llama.cpp and what is built on it",
    "dataset": "Dialogues, cleaned and split",
}
# Of the hub's list of licence identifiers; any other is `other` with a name.
_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail"),
    *("gpl-3.0", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "bigscience-openrail-m", "other"),
}
# What of a report's row goes into the card: key → the hub's metric, and its name for people.
_METRICS = {
    "bleu": ("bleu", "BLEU"),
    "rouge1": ("rouge", "ROUGE-1"),
    "rouge2": ("rouge", "ROUGE-2"),
    "rougeL": ("rouge", "ROUGE-L"),
    "chrf": ("chrf", "chrF"),
    "perplexity": ("perplexity", "perplexity"),
}
_SPLITS = {"train.jsonl": "train", "valid.jsonl": "validation", "test.jsonl": "test"}
_BODY = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


@dataclass(frozen=True)
class Measured:
    """One row of an evaluation. `metrics`: as in its report; `retention`: the share of the fine-tune that it kept."""

    name: str
    metrics: Mapping[str, float]
    samples: int
    retention: float | None = None


@dataclass(frozen=True)
class HubCard:
    """What the card may tell; whatever is unknown is left out.

    `repo`: OWNER/NAME; `kind`: adapter, model, quantized, gguf or dataset; `base`: what it was made from, in words, and
    `base_id` as the hub knows it; `tuned`: whether a fine-tune is in it; `command`: what made it; `facts`: of training or
    cleaning; `lineage`: step → fingerprint; `written`: a card that came with the artifact, whose text is kept.
    """

    repo: str
    kind: str
    base: str | None = None
    base_id: str | None = None
    tuned: bool = False
    licence: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    files: Sequence[str] = ()
    measured: Sequence[Measured] = ()
    command: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    written: str | None = None


def render(card: HubCard) -> str:
    """The text of README.md."""
    body = [_BODY.sub("", card.written).rstrip()] if card.written else [_title(card), _use(card)]
    more = [_licence(card), _measured(card), _made(card), *([] if card.written else [_lineage(card)]), _check(card)]
    return "\n\n".join(["\n".join(["---", *_front_matter(card), "---"]), *body, *filter(None, more)]) + "\n"


def _front_matter(card: HubCard) -> Iterator[str]:
    is_model = card.kind != "dataset"
    licence = card.licence if card.licence in _LICENCES or not card.licence else "other"
    pairs: list[tuple[str, Any]] = [
        ("license", licence),
        ("license_name", card.licence if licence == "other" and card.licence != "other" else None),
        ("base_model", card.base_id if is_model else None),
        ("base_model_relation", _relation(card) if is_model and card.base_id else None),
        ("datasets", list(card.datasets)),
        ("language", list(card.languages)),
        ("pipeline_tag", "text-generation" if is_model else None),
        ("library_name", _LIBRARY.get(card.kind)),
        ("tags", [*_TAGS[card.kind], "llmkit"]),
        ("metrics", sorted({_METRICS[name][0] for row in card.measured for name in row.metrics if name in _METRICS})),
        ("quantized_by", "llmkit" if card.kind in ("quantized", "gguf") else None),
        ("task_categories", None if is_model else ["text-generation"]),
    ]
    yield from (f"{key}: {yaml_value(value)}" for key, value in pairs if value)
    if card.measured:
        results = [_result(row) for row in card.measured]
        index = [{"name": visible(card.repo.rpartition("/")[2]), "results": results}]
        yield f"model-index: {json.dumps(index, ensure_ascii=False)}"
    splits = [{"split": split, "path": name} for name, split in _SPLITS.items() if name in card.files]
    if not is_model and splits:
        yield f"configs: {json.dumps([{'config_name': 'default', 'data_files': splits}])}"


def _relation(card: HubCard) -> str:
    if card.kind == "adapter":
        return "adapter"
    return "finetune" if card.tuned else "quantized" if card.kind in ("quantized", "gguf") else "finetune"


def _result(row: Measured) -> dict[str, Any]:
    metrics = [
        {"type": kind, "name": f"{shown} ({visible(row.name)})", "value": round(row.metrics[key], 4)}
        for key, (kind, shown) in _METRICS.items()
        if key in row.metrics
    ]
    data = {"type": "held-out-dialogues", "name": f"{row.samples} held-out dialogues"}
    return {"task": {"type": "text-generation"}, "dataset": data, "metrics": metrics}


def _title(card: HubCard) -> str:
    made = f", made from {escaped(card.base)}" if card.base else ""
    return f"# {escaped(card.repo.rpartition('/')[2])}\n\n{_WHAT[card.kind]}{made}."


def _use(card: HubCard) -> str:
    name = json.dumps(card.repo)
    lines = {
        "adapter": [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(card.base_id or 'the base')})",
            f"model = PeftModel.from_pretrained(base, {name})",
            f"tokenizer = AutoTokenizer.from_pretrained({name})",
        ],
        "dataset": ["from datasets import load_dataset", f"dialogues = load_dataset({name})"],
    }.get(card.kind) or [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({name})",
        f"model = AutoModelForCausalLM.from_pretrained({name})",
    ]
    more = "\n\nThe chat template is in the tokenizer." if card.kind in ("model", "quantized", "adapter") else ""
    return "\n".join(["## Use", "", "```python", *lines, "```"]) + more


def _licence(card: HubCard) -> str:
    if card.kind == "dataset":
        text = "It is that of the sources, which llmkit does not know: say here which."
    elif card.licence:
        text = f"{escaped(card.licence)}: that of the base model, which holds for what is made from it."
    else:
        text = "It is that of the base model, which llmkit does not know: say here which."
    return f"## Licence\n\n{text}"


def _measured(card: HubCard) -> str:
    if not card.measured:
        return ""
    shown = [(key, name) for key, (_, name) in _METRICS.items() if any(key in row.metrics for row in card.measured)]
    kept = any(row.retention is not None for row in card.measured)
    head = ["row", *(name for _, name in shown), *(["retention"] if kept else [])]
    rows = [
        [
            escaped(row.name),
            *(_number(row.metrics.get(key), 2) for key, _ in shown),
            *([_number(row.retention, 3)] if kept else []),
        ]
        for row in card.measured
    ]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]
    heading = f"On {card.measured[0].samples} held-out dialogues, by `llmkit eval`, of just these files."
    notes = (
        ["", "Retention: the share of the fine-tune that was kept, 1 − KL(merged ‖ this) / KL(merged ‖ base)."] if kept else []
    )
    return "\n".join(["## Measured", "", heading, "", *table, *notes])


def _made(card: HubCard) -> str:
    lines = [f"- {escaped(key.replace('_', ' '))}: {escaped(told(value))}" for key, value in card.facts.items()]
    command = ["```sh", re.sub(r"[\x00-\x1f`]", " ", card.command), "```"] if card.command else []
    if card.written:
        lines = []
    parts = [*command, *([""] if command and lines else []), *lines]
    return "\n".join(["## How it was made", "", *parts]) if parts else ""


def _lineage(card: HubCard) -> str:
    lines = [f"- {escaped(step)}: {escaped(fingerprint)}" for step, fingerprint in card.lineage.items()]
    return "\n".join(["## Lineage", "", "Fingerprints of each step's settings and inputs:", "", *lines]) if lines else ""


def _check(card: HubCard) -> str:
    return (
        "## Verify\n\n`manifest.json` lists the SHA-256 of every file; `llmkit verify FOLDER` compares them after a download."
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
