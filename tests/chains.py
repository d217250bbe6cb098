"""A whole recipe run without its work: each step's folder holds a few bytes under the fingerprint that a plan asks for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import artifact, pipeline, recipe
from llmkit.artifact import Kind, Manifest
from llmkit.pipeline import Planned

CHATS = [f"问题 {number * 7919}？" for number in range(8)]


def write_inputs(folder: Path) -> None:
    """chats.jsonl and model/, a base that no one can load."""
    lines = [json.dumps({"messages": [{"role": "user", "content": chat}]}) for chat in CHATS]
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")


def write_recipe(path: Path, **changes: Any) -> Path:
    whole = {
        "name": "mine",
        "model": "./model",
        "data": {"sources": [{"path": "chats.jsonl"}]},
        "finetune": {"template": "chatml"},
        "quantize": [{"bits": 8}, {"bits": 4}],
        "export": {"types": ["q8_0"]},
        "eval": {},
    }
    path.write_text(json.dumps({name: value for name, value in {**whole, **changes}.items() if value is not None}))
    return path


def publish_all(path: Path, workspace: Path, *, but: Sequence[str] = ()) -> list[Planned]:
    """Publish every stale step of a recipe but those named; returns the plan from before."""
    chosen = recipe.load(path)
    planned = pipeline.plan(pipeline.lay_out(chosen), workspace / chosen.name)
    for one in planned:
        if not one.fresh and one.node.name not in but:
            publish(one, facts={"adapters": 1} if one.node.name == "merge" else {})
    (workspace / chosen.name).mkdir(parents=True, exist_ok=True)
    (workspace / chosen.name / ".lock").touch()
    artifact.write_json(workspace / "last.json", {"recipe": str(path), "set": []})
    return planned


def publish(one: Planned, *, facts: dict[str, Any]) -> None:
    staging = one.folder.parent / ".staging" / f"{one.node.name}-{one.fingerprint[:16]}"
    staging.mkdir(parents=True)
    (staging / "weights").write_bytes(one.node.name.encode() * 1000)
    config = one.node.config.model_dump(mode="json")
    manifest = Manifest(Kind(one.node.step.KIND), one.node.step.VERB, one.fingerprint, config, one.inputs, facts=facts)
    artifact.publish(staging, one.folder, manifest)


def verdicts(path: Path, workspace: Path) -> dict[str, str]:
    chosen = recipe.load(path)
    return {one.node.name: one.reason for one in pipeline.plan(pipeline.lay_out(chosen), workspace / chosen.name)}
