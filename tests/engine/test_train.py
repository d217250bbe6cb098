"""Training on the tiny model: what it learns, what it writes, how it stops and how it goes on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from llmkit import progress
from llmkit.engine import lora, mask, precision, train
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.templates import resolve
from llmkit.errors import DataError, FidelityError
from tests.training import OBJECTIVES, RECORDS, RUNS, SETTINGS, STILL, Tally, finetune, log


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads may be ordered otherwise; bits are compared here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    sink = Tally()
    monkeypatch.setattr(progress, "_sink", sink)
    return sink


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """An uninterrupted run of each kind: its folder and its facts."""
    torch.set_num_threads(1)
    made = {}
    for name, changes in RUNS.items():
        out = tmp_path_factory.mktemp(name)
        made[name] = (out, finetune(tiny_model, out, **changes))
    return made


# Runs each kind in children that are SIGKILLed: five at a random moment each, then one at step 7, between two checkpoints.
KILLED = """
import os, random, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from llmkit import progress
from tests import training as T
class Killer(T.Tally):
    def advance(self, count=1, text=""):
        super().advance(count, text)
        if sum(self.advances) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
def killed(name, changes, arm):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        arm()
        T.finetune(Path({base!r}), Path({out!r}) / name, **changes)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def soon(seconds):
    threading.Thread(target=lambda: (time.sleep(seconds), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
for name, changes in T.RUNS.items():
    for _ in range(5):
        delay = random.uniform(0.05, {seconds!r}[name])
        print(name, round(delay, 2), killed(name, changes, lambda: soon(delay)), flush=True)
        if (Path({out!r}) / name / "tokenizer.json").exists():
            __import__("shutil").rmtree(Path({out!r}) / name)  # it was done already
    assert killed(name, changes, lambda: progress.install(Killer())) in (0, -signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, whole: dict[str, tuple[Path, dict[str, Any]]]) -> Path:
    out = tmp_path_factory.mktemp("killed")
    seconds = {name: 1.2 * facts["seconds"] + 0.3 for name, (_, facts) in whole.items()}
    code = KILLED.format(root=str(Path(__file__).parents[2]), base=str(tiny_model), out=str(out), seconds=seconds)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bits(
    name: str,
    tiny_model: Path,
    killed: Path,
    whole: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    out, (expected, facts) = killed / name, whole[name]
    resumed = finetune(tiny_model, out, **RUNS[name])
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    measured = {"seconds", "tokens_per_second"}
    assert {key: resumed[key] for key in resumed.keys() - measured} == {key: facts[key] for key in facts.keys() - measured}


def test_a_killed_run_repeats_only_what_came_after_its_checkpoint(tiny_model: Path, tmp_path: Path, tally: Tally) -> None:
    out = tmp_path / "out"

    class Stopped(Exception):  # noqa: N818 - stands for a kill
        pass

    def stop(count: int = 1, text: str = "") -> None:
        tally.advances.append(count)
        if sum(tally.advances) == 7:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "advance", stop)
        with pytest.raises(Stopped):
            finetune(tiny_model, out)
    assert {path.name for path in (out / "checkpoints").iterdir()} >= {"checkpoint-4", "checkpoint-6"}
    tally.advances.clear()
    finetune(tiny_model, out)
    assert tally.advances == [6, 1, 1, 1]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_lowers_the_held_out_loss_and_says_what_it_did(
    objective: str, whole: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, facts = whole[objective]
    if objective in ("sft", "orpo"):  # the others learn what to prefer, not what is likely
        assert facts["valid_loss_after"] < facts["valid_loss_before"]
    assert log(out, "valid_loss")[-1]["valid_loss"] < log(out, "valid_loss")[0]["valid_loss"]
    assert (facts["batch_size"], facts["template"], facts["eos_token"]) == (4, "chatml", "<|im_end|>")
    assert facts["records_overlong"] == facts["records_forged"] == 0
    assert facts["objective_details"].startswith(objective)
    entries = log(out)
    assert [entry["step"] for entry in entries] == list(range(1, facts["steps"] + 1))
    assert facts["tokens"] == sum(entry["tokens"] for entry in entries) > 0
    assert any("rewards_margin" in entry for entry in entries) == (objective != "sft")


def test_what_is_written_is_whole_and_names_no_machine_path(
    tiny_model: Path, whole: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, _ = whole["sft"]
    names = {"adapter_model.safetensors", "adapter_config.json", "log.jsonl", "samples.jsonl"}
    names |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "chat_template.jinja").read_text("utf-8") == resolve("chatml", tiny_model).text
    assert (out / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo:tiny"
    for path in out.iterdir():
        assert str(tiny_model).encode() not in path.read_bytes()


def test_the_written_adapter_gives_the_held_out_loss_that_was_reported(
    tiny_model: Path, whole: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, facts = whole["sft"]
    model = PeftModel.from_pretrained(load_model(tiny_model), out).eval()
    tokenizer, template = load_tokenizer(out), resolve("model", out)
    total, count = 0.0, 0
    for item in mask.encode_all(RECORDS[:4], tokenizer, template, max_length=200).items:
        logits = model(input_ids=torch.tensor([item.input_ids])).logits[0, :-1]
        labels = torch.tensor(item.labels[1:])
        total += functional.cross_entropy(logits, labels, ignore_index=mask.IGNORED, reduction="sum").item()
        count += int((labels != mask.IGNORED).sum())
    assert total / count == pytest.approx(facts["valid_loss_after"], abs=1e-5)


def test_micro_batches_learn_what_a_whole_batch_learns(tiny_model: Path, tmp_path: Path) -> None:
    facts = [finetune(tiny_model, tmp_path / str(size), micro_batch=size, lora=STILL, max_steps=3) for size in (1, 4)]
    assert facts[0]["valid_loss_after"] == pytest.approx(facts[1]["valid_loss_after"], abs=1e-5)


def test_bf16_rounds_the_frozen_weights_and_keeps_the_adapter_fp32(tiny_model: Path, tmp_path: Path) -> None:
    facts = finetune(tiny_model, tmp_path / "out", precision="bf16", lora=STILL)
    exact = finetune(tiny_model, tmp_path / "exact", lora=STILL)
    assert facts["precision"] == "bf16"
    assert facts["valid_loss_after"] == pytest.approx(exact["valid_loss_after"], abs=0.02)
    model = attached(tiny_model, "bf16")
    assert {str(weight.dtype) for weight in model.parameters() if weight.requires_grad} == {"torch.float32"}


def attached(base: Path, kept: precision.Precision) -> Any:
    return lora.attach(load_model(base), STILL, seed=1, precision=kept, base_ref="")


def test_a_changed_setting_starts_afresh(tiny_model: Path, tmp_path: Path, tally: Tally) -> None:
    out = tmp_path / "out"
    with pytest.raises(FidelityError):  # leaves checkpoints of another run behind
        finetune(tiny_model, out, lr=1e30, checkpoint_every=1)
    tally.advances.clear()
    finetune(tiny_model, out, max_steps=2)
    assert tally.advances == [0, 1, 1]


@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_a_loss_that_is_no_number_stops_at_its_step_and_writes_nothing(
    objective: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(FidelityError, match=r"is (nan|inf) at step \d") as caught:
        finetune(tiny_model, tmp_path / "out", objective=objective, lr=1e30)
    assert "finetune.lr" in caught.value.next
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_dataset_smaller_than_a_batch_trains(tiny_model: Path, tmp_path: Path) -> None:
    facts = train.train(tiny_model, RECORDS[:2], [], tmp_path, settings=SETTINGS)
    assert (facts["batch_size"], facts["steps"]) == (2, 3)
    assert facts["valid_loss_before"] is facts["valid_loss_after"] is None


def test_nothing_to_train_on_is_a_data_error(tiny_model: Path, tmp_path: Path) -> None:
    for records in ([], RECORDS):
        with pytest.raises(DataError, match="nothing to train on"):
            train.train(tiny_model, records, [], tmp_path, settings=replace(SETTINGS, max_length=8))


def test_the_bar_moves_once_a_step_and_nobody_else_talks(
    tiny_model: Path, tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    finetune(tiny_model, tmp_path / "out")
    assert (tally.total, sum(tally.advances)) == (9, 9)
    assert capfd.readouterr() == ("", "")


def test_training_asks_nothing_of_the_network(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)  # a thread's own error would go unseen
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("CI", raising=False)  # TRL's telemetry keeps still under CI
    for objective in ("sft", "orpo"):
        finetune(tiny_model, tmp_path / objective, objective=objective)
    assert not asked


def test_a_folder_that_is_no_model_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DataError):
        finetune(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16\n", "bf16"),
        ("Features\t: fp asimd bf16\n", "bf16"),
        ("flags: fpu avx512f\n", "fp32"),
        ("", "fp32"),
    ],
)
def test_precision_follows_the_processor(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "cpuinfo").write_text(text)
    assert precision.choose("auto", cpuinfo=tmp_path / "cpuinfo") == expected
    assert precision.choose("auto", cpuinfo=tmp_path / "missing") == "fp32"
    assert precision.choose("bf16", cpuinfo=tmp_path / "missing") == "bf16"
