"""Training in two processes: the losses, the weights and the resuming of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmkit.artifact import Artifact, Facts, Kind
from llmkit.engine import distributed
from llmkit.steps import finetune

ASKED = {"template": "chatml", "batch_size": 4, "micro_batch": 1, "lr": 3e-3, "precision": "fp32", "seed": 3, "samples": 1}
Train = Callable[..., Facts]


@pytest.fixture
def train(tiny_model: Path, tiny_dataset: Callable[..., Artifact], artifact_of: Callable[..., Artifact]) -> Train:
    """Fine-tune the tiny model into a folder."""

    def run(out: Path, **changes: Any) -> Facts:
        out.mkdir(exist_ok=True)
        paired = changes.get("objective", "sft") != "sft"
        dataset = next(iter(out.parent.glob("dataset-*")), None)
        inputs = {
            "dataset": artifact_of(dataset, Kind.DATASET) if dataset else tiny_dataset(rejected=paired),
            "base": artifact_of(tiny_model, Kind.MODEL),
        }
        return finetune.run(finetune.Config(**{**ASKED, **changes}), inputs, out)

    return run


def logged(out: Path) -> list[dict[str, float]]:
    return [entry for line in (out / "log.jsonl").read_text("utf-8").splitlines() if "loss" in (entry := json.loads(line))]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}


# Each case starts three processes; all of them take minutes. (kto's loss depends on who shares a micro-batch: not here.)
CASES = [("sft", "lora", "ddp"), ("orpo", "lora", "fsdp")]
SLOW_CASES = [
    *(("sft", "lora", "fsdp"), ("orpo", "lora", "ddp"), ("sft", "full", "ddp"), ("sft", "full", "fsdp")),
    ("dpo", "lora", "ddp"),
]


@pytest.mark.parametrize(
    ("objective", "method", "strategy"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)]
)
def test_two_processes_learn_what_one_does(train: Train, tmp_path: Path, objective: str, method: str, strategy: str) -> None:
    asked = {"objective": objective, "method": method, "max_steps": 10}
    one = train(tmp_path / "one", **asked)
    two = train(tmp_path / "two", **asked, processes=2, strategy=strategy)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["tokens"], one["steps"]) == (two["tokens"], two["steps"])
    for alone, together in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert together == pytest.approx(alone, abs=1e-4)
    assert two["valid_loss_after"] == pytest.approx(one["valid_loss_after"], abs=1e-4)
    apart, joined = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert apart.keys() == joined.keys()
    for name, tensor in apart.items():
        torch.testing.assert_close(joined[name], tensor, atol=1e-4, rtol=0)


PARENT = """
import json, sys
from pathlib import Path
from llmkit.artifact import Kind, foreign
from llmkit.steps import finetune
if __name__ == "__main__":
    asked, dataset, base, out = sys.argv[1:]
    inputs = {"dataset": foreign(Path(dataset), Kind.DATASET), "base": foreign(Path(base), Kind.MODEL)}
    finetune.run(finetune.Config(**json.loads(asked)), inputs, Path(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_that_are_killed_go_on_to_the_same_weights(
    train: Train, tmp_path: Path, tiny_model: Path, strategy: str
) -> None:
    asked = {"max_steps": 40, "checkpoint_every": 5, "processes": 2, "strategy": strategy, "lora": {"rank": 4, "dropout": 0.1}}
    train(tmp_path / "whole", **asked)
    script, cut = tmp_path / "parent.py", tmp_path / "cut"
    script.write_text(PARENT, "utf-8")
    cut.mkdir()
    dataset = next(tmp_path.glob("dataset-*"))
    with subprocess.Popen([sys.executable, script, json.dumps({**ASKED, **asked}), dataset, tiny_model, cut]) as parent:
        while parent.poll() is None and not list(cut.glob("checkpoints/checkpoint-*/complete.json")):
            time.sleep(0.02)
        assert parent.poll() is None, "it ended before it could be killed"
        os.kill(parent.pid, signal.SIGKILL)
    time.sleep(2)  # for its children to notice
    before = {path.name for path in cut.glob("checkpoints/checkpoint-*")}
    assert before
    train(cut, **asked)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(cut)[name], tensor), name
    assert [entry["loss"] for entry in logged(cut)] == [entry["loss"] for entry in logged(tmp_path / "whole")]


def test_outside_a_group_a_process_is_alone_and_no_strategy_asks_for_anything() -> None:
    assert (distributed.processes(), distributed.rank()) == (1, 0)
    assert {name: distributed.options(name) for name in ("ddp", "fsdp", "deepspeed")} == {
        "ddp": {},
        "fsdp": {},
        "deepspeed": {},
    }


def test_what_learns_is_gathered_and_nothing_else() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    assert distributed.gathered(model).keys() == {"1.weight", "1.bias"}
