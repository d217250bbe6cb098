"""What stands beside GGUF files for those who get them: where they come from, a model card, an Ollama Modelfile."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.artifact import Artifact, Facts
from llmkit.report.table import RETENTION_FLOOR

_FRONT_MATTER = 10_000  # characters of a model card that are looked at
_WINDOW = 8192  # tokens that a Modelfile asks for at most: a long context takes memory whether it is used or not


def title(inputs: Mapping[str, Artifact]) -> str:
    """general.name: the base's, said to be fine-tuned where it is."""
    return f"{_name(inputs['base'])}, fine-tuned" if "base" in inputs else _name(inputs["model"])


def provenance(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Where a file comes from, as GGUF keys: its own fingerprint, its base, the base's licence, the data."""
    base, keys = inputs.get("base"), {"llmkit.fingerprint": inputs["model"].fingerprint}
    if licence := licence_of(base or inputs["model"]):
        keys["general.license"] = licence
    if base:
        keys |= _named("base_model", _name(base), base.fingerprint)
    if "dataset" in inputs:
        keys |= _named("dataset", "llmkit dataset", inputs["dataset"].fingerprint)
    return keys


def _named(what: str, name: str, version: str) -> dict[str, Any]:
    return {f"general.{what}.count": 1, f"general.{what}.0.name": name, f"general.{what}.0.version": version}


def _name(base: Artifact) -> str:
    return str(base.manifest.config.get("origin") or base.path.name)


def licence_of(base: Artifact) -> str | None:
    """As the base's facts say, or the front matter of its model card."""
    known, card = base.facts.get("licence"), base.path / "README.md"
    if known and isinstance(known, str):
        return known
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(_FRONT_MATTER)
    found = re.match(r"---\n(?:(?!---).*\n)*?license:[ \t]*([\w.-]{1,60})[ \t]*\n", head)
    return found[1] if found else None


def describe(
    out: Path,
    inputs: Mapping[str, Artifact],
    types: Mapping[str, Facts],
    adapter: Facts | None,
    *,
    template: Any,
    tokenizer: Any,
) -> None:
    """Write a model card, and a Modelfile for the smallest file that kept the fine-tune.

    Args:
        out: the folder of the files.
        inputs: what the files were made from, by role.
        types: the facts of each file, by type.
        adapter: those of the LoRA, if it was written.
        template: the model's `ChatTemplate`.
        tokenizer: the model's.
    """
    from llmkit.gguf import modelfile
    from llmkit.gguf.container import open_file
    from llmkit.report import card

    kept = {kind: facts for kind, facts in types.items() if facts["retention"] is None or facts["retention"] >= RETENTION_FLOOR}
    best = min((kept or types).values(), key=lambda facts: int(facts["bytes"]))
    path = out / best["files"][0]
    keys = open_file(path).metadata
    context = int(keys[f"{keys['general.architecture']}.context_length"])
    base, trained = inputs.get("base"), inputs.get("adapter")
    licence = licence_of(base or inputs["model"])
    if whole := len(best["files"]) == 1:  # Ollama takes no model in parts
        text = modelfile.modelfile(
            path.name,
            template=template.text,
            stops=[template.eos],
            context=min(context, _WINDOW),
            licence=licence,
            bos=tokenizer.bos_token or "",
            adds_bos=bool(keys.get("tokenizer.ggml.add_bos_token", False)),
        )
        (out / "Modelfile").write_text(text, "utf-8")
    shown = ("objective", "method", "records", "steps", "train_loss", "valid_loss_before", "valid_loss_after")
    info = card.CardInfo(
        name=title(inputs),
        base=_name(base) if base else None,
        licence=licence,
        training={key: trained.facts[key] for key in shown if key in trained.facts} if trained else {},
        files=_card_files(types, adapter),
        lineage={role: found.fingerprint for role, found in inputs.items()},
        stops=[template.eos],
        context=min(context, _WINDOW),
        adapter=adapter["file"] if adapter else None,
        adapter_base=adapter["base"]["files"][0] if adapter else None,
        modelfile=whole,
    )
    (out / "README.md").write_text(card.card(info), "utf-8")


def _told(facts: Facts) -> list[str]:
    told = [*facts["warnings"]]
    if facts["retention"] is not None and facts["retention"] < RETENTION_FLOOR:
        told.append(f"it lost the fine-tune: it kept {facts['retention']:.0%} of it")
    if facts["fallback_tensors"]:
        told.append(f"{facts['fallback_tensors']} tensors have rows that do not fit the type, and another type instead")
    if len(facts["files"]) > 1:
        told.append(f"it comes in {len(facts['files'])} parts")
    return told


def _card_files(types: Mapping[str, Facts], adapter: Facts | None) -> list[Any]:
    from llmkit.report.card import CardFile

    files = [
        CardFile(
            facts["files"][0],
            kind,
            facts["bits_per_weight"],
            facts["bytes"],
            facts["retention"],
            facts["kl"],
            _told(facts),
        )
        for kind, facts in types.items()
    ]
    if adapter:
        base = adapter["base"]
        lora = CardFile(adapter["file"], "lora", retention=adapter["retention"], kl=adapter["kl"])
        files += [CardFile(base["files"][0], base["type"], base["bits_per_weight"], base["bytes"]), lora]
    return files
