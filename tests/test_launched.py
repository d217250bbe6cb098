"""The command under an outside launcher: one of its processes speaks, all of them train."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import exchange

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "llmkit"]
RECIPE = """
name: launched
model: {model}
data: {{sources: [{{path: chats.jsonl}}]}}
clean: {{min_turns: 1}}
finetune: {{template: chatml, batch_size: 4, micro_batch: 1, max_steps: 10, precision: fp32, samples: 0}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    lines = [json.dumps({"messages": exchange(number)}) for number in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), "utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model), "utf-8")
    return path


def ran(command: list[str], recipe: Path, workspace: str, *changes: str) -> subprocess.CompletedProcess[str]:
    options = ["run", recipe.name, "--workspace", workspace, *(f"--set={change}" for change in changes)]
    return subprocess.run([*command, *options], cwd=recipe.parent, capture_output=True, text=True, timeout=200, check=False)


def losses(recipe: Path, workspace: str) -> list[float]:
    lines = (recipe.parent / workspace / "launched" / "finetune" / "log.jsonl").read_text("utf-8").splitlines()
    return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]


@pytest.mark.slow
def test_a_launched_run_learns_what_a_plain_one_does_and_speaks_once(recipe: Path) -> None:
    alone = ran([sys.executable, "-m", "llmkit"], recipe, "alone")
    launched = ran(LAUNCH, recipe, "launched")
    assert (alone.returncode, launched.returncode) == (0, 0), launched.stderr
    assert launched.stdout.count("steps run") == 1
    assert losses(recipe, "launched") == pytest.approx(losses(recipe, "alone"), abs=1e-4)


@pytest.mark.slow
def test_a_launched_run_that_fails_tells_why_once_and_leaves_no_process_waiting(recipe: Path) -> None:
    failed = ran(LAUNCH, recipe, "failing", "finetune.max_length=8")
    assert failed.returncode != 0
    assert failed.stderr.count("nothing to train on") == 1
