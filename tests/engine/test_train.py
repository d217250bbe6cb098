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
from llmkit.engine import lora, mask, orpo, precision, sft, train
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.templates import resolve
from llmkit.errors import DataError, FidelityError, UsageError

SETTINGS = train.Settings(
    objective="sft",
    template="chatml",
    rank=4,
    alpha=8,
    dropout=0.1,
    targets="all-linear",
    lr=5e-3,
    beta=0.1,
    epochs=3,
    max_steps=None,
    batch_size=4,
    micro_batch=None,
    max_length=200,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.0,
    checkpoint_every=2,
    precision="fp32",
    seed=7,
)
RECORDS = [
    {
        "id": f"{number:016x}",
        "messages": [
            {"role": "user", "content": f"Question {number}: 你好?"},
            {"role": "assistant", "content": f"Answer {'yes ' * (number % 5)}{number}。"},
        ],
        "rejected": "I do not know.",
    }
    for number in range(12)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads may be ordered otherwise; bits are compared here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def finetune(base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return train.train(base, RECORDS, RECORDS[:4], out, settings=replace(SETTINGS, **changes), base_ref="demo:tiny")


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


class Tally:
    """A progress sink that counts."""

    def __init__(self) -> None:
        self.advances: list[int] = []
        self.total: int | None = None

    def open(self, title: str, total: int | None) -> progress.Bar:
        self.total = total
        return self

    def close(self, bar: progress.Bar) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def advance(self, count: int = 1, text: str = "") -> None:
        self.advances.append(count)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    sink = Tally()
    monkeypatch.setattr(progress, "_sink", sink)
    return sink


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """An uninterrupted run of each objective: its folder and its facts."""
    torch.set_num_threads(1)
    made = {}
    for objective in ("sft", "orpo"):
        out = tmp_path_factory.mktemp(objective)
        made[objective] = (out, finetune(tiny_model, out, objective=objective))
    return made


# Trains each objective in a child that SIGKILLs itself at step 7, between checkpoints and in the third epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_train as T
class Killer(T.Tally):
    def advance(self, count=1, text=""):
        super().advance(count, text)
        if sum(self.advances) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
for objective in ("sft", "orpo"):
    child = os.fork()
    if child == 0:
        T.torch.set_num_threads(1)
        T.progress.install(Killer())
        T.finetune(Path({base!r}), Path({out!r}) / objective, objective=objective)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed")
    code = KILLED.format(tests=str(Path(__file__).parent), base=str(tiny_model), out=str(out))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    return out


@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_a_killed_run_goes_on_to_the_same_bits(
    objective: str,
    tiny_model: Path,
    killed: Path,
    whole: dict[str, tuple[Path, dict[str, Any]]],
    tally: Tally,
) -> None:
    out, (expected, facts) = killed / objective, whole[objective]
    assert (out / "checkpoints" / "checkpoint-6").is_dir()
    assert not (out / "adapter_model.safetensors").exists()
    resumed = finetune(tiny_model, out, objective=objective)
    assert tally.advances == [6, 1, 1, 1]
    for name in ("adapter_model.safetensors", "adapter_config.json", "log.jsonl"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    measured = {"seconds", "tokens_per_second"}
    assert {key: resumed[key] for key in resumed.keys() - measured} == {key: facts[key] for key in facts.keys() - measured}


@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_training_lowers_the_held_out_loss_and_says_what_it_did(
    objective: str, whole: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, facts = whole[objective]
    assert facts["valid_loss_after"] < facts["valid_loss_before"]
    assert (facts["steps"], facts["batch_size"], facts["template"], facts["eos_token"]) == (9, 4, "chatml", "<|im_end|>")
    assert facts["dropped_overlong"] == facts["dropped_forged"] == 0
    assert facts["objective_details"].startswith(objective)
    entries = log(out)
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    assert facts["tokens"] == sum(entry["tokens"] for entry in entries) > 0
    assert ("rewards_margin" in entries[0]) == (objective == "orpo")


def test_what_is_written_is_whole_and_names_no_machine_path(
    tiny_model: Path, whole: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    out, _ = whole["sft"]
    names = {"adapter_model.safetensors", "adapter_config.json", "log.jsonl"}
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
    data = sft.collate(mask.encode_all(RECORDS[:4], tokenizer, template, max_length=200).items)
    logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), data["labels"][:, 1:].flatten(), ignore_index=mask.IGNORED)
    assert loss.item() == pytest.approx(facts["valid_loss_after"], abs=1e-5)


def test_micro_batches_learn_what_a_whole_batch_learns(tiny_model: Path, tmp_path: Path) -> None:
    facts = [finetune(tiny_model, tmp_path / str(size), micro_batch=size, dropout=0.0, max_steps=3) for size in (1, 4)]
    assert facts[0]["valid_loss_after"] == pytest.approx(facts[1]["valid_loss_after"], abs=1e-5)


def test_bf16_rounds_the_frozen_weights_and_keeps_the_adapter_fp32(tiny_model: Path, tmp_path: Path) -> None:
    facts = finetune(tiny_model, tmp_path / "out", precision="bf16", dropout=0.0)
    exact = finetune(tiny_model, tmp_path / "exact", dropout=0.0)
    assert facts["precision"] == "bf16"
    assert facts["valid_loss_after"] == pytest.approx(exact["valid_loss_after"], abs=0.02)
    model = attached(tiny_model, "bf16")
    assert {str(weight.dtype) for weight in model.parameters() if weight.requires_grad} == {"torch.float32"}


def test_rounding_once_equals_autocast_at_every_step(tiny_model: Path) -> None:
    data = encoded_batch(tiny_model)
    outputs = []
    for kept in ("bf16", "fp32"):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            outputs.append(attached(tiny_model, kept)(**data).logits)
    assert torch.equal(*outputs)


def attached(base: Path, kept: precision.Precision, targets: lora.Targets = "all-linear") -> Any:
    options = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": targets, "seed": 1, "precision": kept, "base_ref": ""}
    return lora.attach(load_model(base), **options)


def encoded_batch(base: Path) -> dict[str, torch.Tensor]:
    items = mask.encode_all(RECORDS[:3], load_tokenizer(base), resolve("chatml", base), max_length=200).items
    return {name: tensor for name, tensor in sft.collate(items).items() if name != "labels"}


def test_orpo_follows_the_paper(tiny_model: Path, tmp_path: Path) -> None:
    """The first step's loss against equations 3, 6 and 7 of arXiv:2403.07691, written out on whole logits."""
    finetune(tiny_model, tmp_path / "out", objective="orpo", batch_size=12, max_steps=1, dropout=0.0)
    pairs = mask.encode_pairs(RECORDS, load_tokenizer(tiny_model), resolve("chatml", tiny_model), max_length=200).items
    data = orpo.collate(pairs)
    logits = load_model(tiny_model)(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits[:, :-1]
    labels = data["labels"][:, 1:]
    each = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != mask.IGNORED)
    mean = each.sum(1) / (labels != mask.IGNORED).sum(1)
    odds = mean - torch.log1p(-mean.exp())
    ratio = functional.logsigmoid(odds[:12] - odds[12:]).mean()
    nll = -each[:12].sum() / (labels[:12] != mask.IGNORED).sum()
    entry = log(tmp_path / "out")[0]
    assert entry["nll"] == pytest.approx(nll.item(), abs=1e-5)
    assert entry["loss"] == pytest.approx((nll - 0.1 * ratio).item(), abs=1e-5)


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


def test_an_adapter_with_a_nan_is_never_written(tiny_model: Path, tmp_path: Path) -> None:
    model = attached(tiny_model, "fp32")
    next(weight for weight in model.parameters() if weight.requires_grad).data[0] = torch.nan
    with pytest.raises(FidelityError, match="not finite"):
        lora.save(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("targets", [("q_proj", "query"), (), ("lm_head",), ("proj",)])
def test_targets_that_match_nothing_list_what_would(targets: tuple[str, ...], tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"lora\.targets") as caught:
        attached(tiny_model, "fp32", targets)
    assert "q_proj" in caught.value.next
    assert "lm_head" not in caught.value.next


def test_named_targets_are_the_only_ones(tiny_model: Path) -> None:
    model = attached(tiny_model, "fp32", ("q_proj", "v_proj"))
    assert lora.trainable_parameters(model) == 2 * 4 * (64 + 64 + 64 + 32)


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
