"""How a run holds itself together: memory that runs out, validation, early stopping, samples, starting from an adapter."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmkit.engine import loss, objectives, train
from llmkit.errors import DataError, FidelityError, MachineError
from tests.training import RECORDS, SETTINGS, STILL, finetune, log


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sums over threads may be ordered otherwise; bits are compared here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, *, most: int, from_step: int = 0) -> list[int]:
    """Let a forward pass over more than `most` conversations fail as CUDA does; returns the sizes that were tried."""
    tried: list[int] = []
    score = loss.score

    def limited(model: Any, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            tried.append(len(batch["lengths"]))
            if len(batch["lengths"]) > most and len(tried) > from_step:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return score(model, batch)

    monkeypatch.setattr("llmkit.engine.trainers.score", limited)
    return tried


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = finetune(tiny_model, tmp_path / "roomy", lora=STILL, max_steps=4)
    tried = short_of_memory(monkeypatch, most=1)
    facts = finetune(tiny_model, tmp_path / "tight", lora=STILL, max_steps=4)
    assert tried[:3] == [4, 4, 2]  # as asked, with activations made again, half
    assert (facts["micro_batch"], facts["gradient_checkpointing"], facts["steps"]) == (1, True, 4)
    for one, other in zip(log(tmp_path / "roomy"), log(tmp_path / "tight"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["tokens"] == other["tokens"]
    assert facts["valid_loss_after"] == pytest.approx(roomy["valid_loss_after"], abs=1e-4)


def test_memory_that_runs_out_late_loses_no_step_before_the_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long record late in the run: it goes on from the checkpoint with less, to the losses of an untroubled run."""
    finetune(tiny_model, tmp_path / "roomy", lora=STILL)
    tried = short_of_memory(monkeypatch, most=2, from_step=5)
    facts = finetune(tiny_model, tmp_path / "tight", lora=STILL)
    assert facts["micro_batch"] == 2
    assert tried.count(4) == 5 + 1 + 1  # steps 1-5, the failure, and one more with checkpointing
    assert [entry["step"] for entry in log(tmp_path / "tight")] == list(range(1, 10))
    losses = [[entry["loss"] for entry in log(tmp_path / name)] for name in ("roomy", "tight")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_what_fits_is_remembered_by_the_run_that_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = short_of_memory(monkeypatch, most=2)
    answer = train.Watch.on_save

    def killed(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        answer(self, args, state, control, **more)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Watch, "on_save", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny_model, tmp_path / "out")
    tried.clear()
    assert finetune(tiny_model, tmp_path / "out")["micro_batch"] == 2
    assert set(tried) == {2}


def test_no_memory_at_all_is_the_machines_fault(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, most=0)
    with pytest.raises(MachineError, match="out of memory") as caught:
        finetune(tiny_model, tmp_path / "out")
    assert "max_length" in caught.value.next


def test_the_best_checkpoint_is_the_one_that_is_kept(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are what is written at the end, not the last ones."""
    saved: list[bytes] = []
    mark = train.checkpoints.mark

    def noted(path: Path, **said: Any) -> None:
        saved.append((path / "adapter_model.safetensors").read_bytes())
        mark(path, **said)

    losses = iter([5.0, 3.0, 4.0, 6.0])
    monkeypatch.setattr("llmkit.engine.trainers.PackedTrainer.validation_loss", lambda self: next(losses))
    monkeypatch.setattr("llmkit.engine.checkpoints.mark", noted)
    facts = finetune(tiny_model, tmp_path / "out", max_steps=8)
    assert (facts["steps"], facts["best_step"], len(saved)) == (8, 4, 4)
    assert [entry["valid_loss"] for entry in log(tmp_path / "out", "valid_loss")] == [5.0, 3.0, 4.0, 6.0]
    kept = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert [kept == weights for weights in saved] == [False, True, False, False]


def test_patience_stops_a_run_that_gets_no_better(tiny_model: Path, tmp_path: Path) -> None:
    facts = finetune(tiny_model, tmp_path / "out", lr=0.3, schedule="constant", lora=STILL, epochs=20, patience=2)
    seen = [entry["valid_loss"] for entry in log(tmp_path / "out", "valid_loss")]
    assert facts["steps"] == 2 * len(seen) < 60
    assert min(seen) == seen[-3]
    assert facts["best_step"] == facts["steps"] - 4


def test_patience_without_held_out_records_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="patience"):
        train.train(tiny_model, RECORDS, [], tmp_path, settings=replace(SETTINGS, patience=1))


def test_samples_are_answered_at_the_start_and_at_each_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    finetune(tiny_model, tmp_path / "out", samples=2)
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [sample["step"] for sample in samples] == [step for step in (0, 2, 4, 6, 8, 9) for _ in range(2)]
    assert {sample["question"] for sample in samples} == {record["messages"][0]["content"] for record in RECORDS[:2]}


def test_samples_disturb_no_weight(tiny_model: Path, tmp_path: Path) -> None:
    for count in (0, 2):
        finetune(tiny_model, tmp_path / str(count), samples=count)
    assert not (tmp_path / "0" / "samples.jsonl").exists()
    weights = [load_file(tmp_path / str(count) / "adapter_model.safetensors") for count in (0, 2)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_a_loss_that_is_no_number_names_its_step_and_record_and_keeps_the_last_checkpoint(
    objective: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = loss.score

    def poisoned(model: Any, batch: Any) -> torch.Tensor:
        found = score(model, batch)
        if not torch.is_grad_enabled() or poisoned.calls < 5:  # type: ignore[attr-defined]
            poisoned.calls += torch.is_grad_enabled()  # type: ignore[attr-defined]
            return found
        return torch.where(batch["groups"] == 2, torch.nan, found)

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("llmkit.engine.trainers.score", poisoned)
    with pytest.raises(FidelityError, match=r"loss is nan at step 6, at record 0000000000\w{6}") as caught:
        finetune(tiny_model, tmp_path / "out", objective=objective)
    assert "finetune.lr" in caught.value.next
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-4" / "complete.json").exists()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_an_infinite_gradient_names_its_step_and_records(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = loss.score
    monkeypatch.setattr("llmkit.engine.trainers.score", lambda model, batch: _Sharp.apply(score(model, batch)))
    with pytest.raises(FidelityError, match=r"gradient's norm is (nan|inf) at step 1, of records \w{16}, \w{16}"):
        finetune(tiny_model, tmp_path / "out")


class _Sharp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> torch.Tensor:
        return above[0] * torch.inf


def test_a_run_starts_from_another_adapter(tiny_model: Path, tmp_path: Path) -> None:
    first = finetune(tiny_model, tmp_path / "first", lora=STILL)
    (tmp_path / "second").mkdir()
    facts = train.train(
        tiny_model,
        RECORDS,
        RECORDS[:4],
        tmp_path / "second",
        settings=replace(SETTINGS, lora=STILL, lr=1e-6, max_steps=1),
        init=tmp_path / "first",
    )
    assert facts["valid_loss_after"] == pytest.approx(first["valid_loss_after"], abs=1e-3)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_preference_run_that_starts_from_an_adapter_ships_one_adapter(
    objective: str, tiny_model: Path, tmp_path: Path
) -> None:
    finetune(tiny_model, tmp_path / "first", lora=STILL)
    (tmp_path / "second").mkdir()
    settings = replace(SETTINGS, lora=STILL, objective=objective, max_steps=3)
    train.train(tiny_model, RECORDS, RECORDS[:4], tmp_path / "second", settings=settings, init=tmp_path / "first")
    assert not [path for path in (tmp_path / "second").iterdir() if path.is_dir()]
    names = [set(load_file(tmp_path / run / "adapter_model.safetensors")) for run in ("first", "second")]
    assert names[0] == names[1]


def test_every_objective_is_in_the_table() -> None:
    from llmkit.steps.finetune import DEFAULT_BETA, DEFAULT_LR

    assert set(objectives.Name.__args__) == set(DEFAULT_LR) == set(DEFAULT_BETA)


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from llmkit.errors import MachineError
from tests import training
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
mark = training.train.checkpoints.mark
def fill(path, **said):
    mark(path, **said)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
training.train.checkpoints.mark = fill
try:
    training.finetune(Path({base!r}), Path({out!r}))
except MachineError as error:
    print(error.what, error.next)
"""


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_disk_that_fills_during_a_checkpoint_loses_nothing(limit: int, tiny_model: Path, tmp_path: Path) -> None:
    """After the first checkpoint no file may grow beyond `limit` bytes: the adapter fails, or the optimizer's state."""
    out = tmp_path / "out"
    code = FULL_DISK.format(root=str(Path(__file__).parents[2]), limit=limit, base=str(tiny_model), out=str(out))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "disk is full" in told
    assert "last whole checkpoint" in told
    whole = [path.parent.name for path in (out / "checkpoints").glob("*/complete.json")]
    assert whole == ["checkpoint-2"]
    expected = finetune(tiny_model, tmp_path / "untroubled")
    facts = finetune(tiny_model, out)
    assert facts["train_loss"] == expected["train_loss"]
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "untroubled")]
    assert weights[0] == weights[1]
