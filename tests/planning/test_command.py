"""`llmkit plan` as its user sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.commands import planning
from llmkit.errors import LlmkitError
from tests.planning.shared import copy_of

RECIPE = """
name: mine
model: {model}
data: {{sources: [{{path: {data}}}]}}
clean: {{min_turns: 2}}
finetune: {{template: chatml, max_steps: 4}}
quantize: [{{bits: 4}}]
export: {{types: [q8_0]}}
eval: {{max_samples: 2}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of a model that is only a name here."""
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello to you"}]
    lines = [
        json.dumps({"messages": [{**one, "content": f"{one['content']} {number}"} for one in messages]}) for number in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), "utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(model="google/gemma-2-9b-it", data=tmp_path / "chats.jsonl"), "utf-8")
    return path


def test_a_recipe_is_planned_before_anything_is_here(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    found = planning.plan(str(recipe), [], tmp_path / "runs")
    steps = {step["name"]: step for step in found.data["steps"]}
    assert list(steps) == ["clean", "finetune", "merge", "quantize-nf4", "export", "eval"]
    assert steps["merge"]["after"] == "finetune"
    assert steps["quantize-nf4"]["after"] == "merge"
    assert all(step["need"]["memory"]["total"] > 0 for step in steps.values())
    assert "google/gemma-2-9b-it (18.5 GB)" in found.text
    assert "llmkit's own copy" in found.text
    assert json.loads(json.dumps(found.data)) == found.data
    assert not (tmp_path / "runs").exists()


def test_a_model_that_nobody_can_describe_is_planned_without_sizes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    found = planning.plan(str(recipe), ["model=nobody/nothing"], tmp_path / "runs")
    assert [step["need"] for step in found.data["steps"]] == [None] * 6
    assert "no memory or time is told" in found.text


def test_a_config_alone_gives_the_device_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(copy_of("Llama-2-70b")), "utf-8")
    found = planning.fits(str(tmp_path / "config.json"), context=4096)
    assert found.data["parameters"] == 68_976_648_192
    assert {row["precision"] for row in found.data["inference"]} >= {"bf16", "int8", "nf4", "q4_k_m", "iq2_xxs"}
    assert {(row["objective"], row["method"]) for row in found.data["training"]} >= {("orpo", "qlora"), ("sft", "full")}
    assert "68.98 B parameters" in found.text
    assert max(map(len, found.text.splitlines())) <= 128


def test_on_a_narrow_terminal_nothing_is_wider_than_it(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    texts = [planning.plan(str(recipe), [], tmp_path / "runs").text, planning.fits("google/gemma-2-27b-it", context=4096).text]
    lines = [line for text in texts for line in text.splitlines()]
    assert [line for line in lines if len(line) > 80 and not line.startswith(("To speak", "To train"))] == []


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "head_dim", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "gemma-2-9b"])
def test_sizes_of_nothing_are_an_error_of_ours(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**copy_of(name), key: 0}), "utf-8")
    with pytest.raises(LlmkitError) as caught:
        planning.fits(str(tmp_path / "config.json"), context=4096)
    assert caught.value.code == "LK0950"


def test_a_longer_context_than_trained_is_remarked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(copy_of("Llama-2-7b")), "utf-8")
    assert "trained for 4096 tokens, not 8192" in planning.fits(str(tmp_path / "config.json"), context=8192).text


def test_nonsense_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": "wide"}', "utf-8")
    with pytest.raises(LlmkitError):
        planning.fits(str(tmp_path / "config.json"), context=4096)


def test_planning_a_known_family_imports_no_torch(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import sys, os; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from pathlib import Path\nfrom llmkit.commands import planning\n"
        f"planning.plan({str(recipe)!r}, [], Path({str(tmp_path / 'runs')!r}))\n"
        "planning.fits('google/gemma-2-27b-it', context=4096)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
