"""The model card beside an export: a README.md for the Hugging Face hub. Knows what is to be said; measures nothing.

Front matter follows https://huggingface.co/docs/hub/model-cards. Names and texts come from strangers' files, so they are
escaped: none of them can add a key, a heading, a link or a row.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkit.report.gguf import HIDDEN

# With the colon no bare address becomes a link; a number or a dash is a list only where a text begins.
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$:]|^-)")
_NUMBERED = re.compile(r"^(\d+)(?=\.(?:\s|$))")
_UNKNOWN = "–"


@dataclass(frozen=True)
class CardFile:
    """One file of the export. `size` is in bytes; `kl` in nats a token, to the model it was made from."""

    name: str
    type: str = ""
    bits_per_weight: float | None = None
    size: int | None = None
    retention: float | None = None
    kl: float | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class CardInfo:
    """What a card may tell; whatever is absent is left out.

    `base`: a hub id or a name; `licence`: a hub identifier such as apache-2.0.
    `training`: what the manifests tell of it, a line for each (objective, method, records, steps, learning rate, loss …).
    `lineage`: step → fingerprint, first step first. `stops`: the texts at which an answer ends. `context` is in tokens.
    `adapter`: the name of a GGUF LoRA among the files, `adapter_base` that of the file it belongs over.
    """

    name: str = ""
    base: str | None = None
    licence: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[CardFile] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    stops: Sequence[str] = ()
    context: int | None = None
    adapter: str | None = None
    adapter_base: str | None = None
    modelfile: bool = False


def card(info: CardInfo) -> str:
    """The text of README.md."""
    sections = (_title, _files, _warnings, _running, _training, _lineage)
    parts = [_front_matter(info), *(text for section in sections if (text := section(info)))]
    return "\n\n".join(parts) + "\n"


def _front_matter(info: CardInfo) -> str:
    # JSON is YAML: a quoted scalar can hold anything and be nothing but text.
    pairs: list[tuple[str, Any]] = [
        ("base_model", info.base),
        ("base_model_relation", ("finetune" if info.training else "quantized") if info.base and info.files else None),
        ("license", info.licence),
        ("pipeline_tag", "text-generation"),
        ("library_name", "gguf" if info.files else None),
        ("tags", [*(["gguf"] if info.files else []), *(["lora"] if info.adapter else []), "llmkit"]),
        ("quantized_by", "llmkit" if info.files else None),
    ]
    lines = [f"{key}: {yaml_value(value)}" for key, value in pairs if value]
    return "\n".join(["---", *lines, "---"])


def yaml_value(value: Any) -> str:
    """A text, or a list of them, as YAML that holds just that."""
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_value, value))}]"
    return json.dumps(visible(value), ensure_ascii=False)


def _title(info: CardInfo) -> str:
    made = f", made from {escaped(info.base)}" if info.base else ""
    kinds = "GGUF files for llama.cpp and what is built on it" if info.files else "A model"
    return f"# {escaped(info.name) or 'Model'}\n\n{kinds}{made}."


def _files(info: CardInfo) -> str:
    if not info.files:
        return ""
    rows = ["| file | type | bits a weight | size | retention | KL |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    rows += [
        f"| {escaped(one.name)} | {escaped(one.type) or _UNKNOWN} | {_number(one.bits_per_weight, 2)} | {_size(one.size)} "
        f"| {_number(one.retention, 3)} | {_number(one.kl, 4)} |"
        for one in info.files
    ]
    notes = []
    if any(one.retention is not None for one in info.files):
        notes.append("Retention: the share of the fine-tune that a file kept, 1 − KL(merged ‖ file) / KL(merged ‖ base).")
    if any(one.kl is not None for one in info.files):
        notes.append("KL: mean KL(model ‖ file) of the next token, in nats.")
    return "\n".join(["## Files", "", *rows, *(["", *notes] if notes else [])])


def _warnings(info: CardInfo) -> str:
    lines = [f"- {escaped(one.name)}: {escaped(warning)}" for one in info.files for warning in one.warnings]
    return "\n".join(["## Warnings", "", *lines]) if lines else ""


def _running(info: CardInfo) -> str:
    beside = {info.adapter, info.adapter_base}
    models = [one for one in info.files if one.name not in beside]
    window = f" -c {int(info.context)}" if info.context else ""
    files = []
    if models:  # the one that keeps most, and of those the smallest
        files.append(_argument(min(models, key=lambda one: (-(one.retention or 0.0), one.size or 0)).name))
    if info.adapter and info.adapter_base:  # over any other file the fine-tune would count twice
        files.append(f"{_argument(info.adapter_base)} --lora {_argument(info.adapter)}")
    if not files:
        return ""
    lines = ["## Use", "", *(f"    {tool} -m {file}{window}" for file in files for tool in ("llama-cli", "llama-server"))]
    if info.modelfile:
        lines += [
            "",
            "With Ollama, from the folder of these files:",
            "",
            "    ollama create my-model -f Modelfile",
            "    ollama run my-model",
        ]
    lines += ["", "The chat template and the tokens that end an answer are in the file."]
    if info.stops:
        lines.append(f"An answer ends at {', '.join(map(escaped, info.stops))}.")
    return "\n".join(lines)


def _training(info: CardInfo) -> str:
    facts = info.training
    lines = [f"- {escaped(key.replace('_', ' '))}: {escaped(told(value))}" for key, value in facts.items() if value is not None]
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _lineage(info: CardInfo) -> str:
    lines = [f"- {escaped(step)}: {escaped(fingerprint)}" for step, fingerprint in info.lineage.items()]
    if not lines:
        return ""
    return "\n".join(
        ["## Lineage", "", "Fingerprints of what each step was made of (its settings and its inputs):", "", *lines]
    )


def told(value: Any) -> str:
    """A fact of a manifest: numbers short, anything nested as JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def escaped(value: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    marked = _NUMBERED.sub(r"\1\\", _MARKS.sub(r"\\\1", visible(value)))
    return html.escape(marked, quote=False)


def visible(value: object) -> str:
    """A text without what cannot be seen, nor what YAML forbids."""
    return re.sub(r"[\ufffe\uffff]", " ", HIDDEN.sub(" ", str(value))).strip() if value is not None else ""


def _argument(name: str) -> str:
    """A file's name in a command that is shown as code: nothing in it is the shell's."""
    plain = visible(name)
    return (
        plain
        if re.fullmatch(r"[\w.@%+=:,-]+", plain) and not plain.startswith("-")
        else "'./" + plain.replace("'", "'\\''") + "'"
    )


def _number(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def _size(size: int | None) -> str:
    return _UNKNOWN if size is None else f"{size / 1e6:,.1f} MB"
