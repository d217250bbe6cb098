"""What the tests of the objectives with a reference model share: the tiny model adapted, runs of a few steps, equal bits."""

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PrinterCallback

from llmkit.engine import lora
from llmkit.engine.loading import load_model
from llmkit.engine.mask import Encoded
from llmkit.engine.templates import ChatTemplate
from llmkit.engine.trainers import arguments, quiet

BETA = 0.3
# ChatML without the line feed after a turn: TRL would learn that too.
PLAIN = ChatTemplate(
    "plain",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_end|>",
)
RECORDS: list[dict[str, Any]] = [
    {
        "id": f"{number:016x}",
        "messages": [
            {"role": "user", "content": f"Question {number}: 你好?"},
            {"role": "assistant", "content": f"Answer {'yes ' * (number % 5)}{number}。"},
        ],
        "rejected": f"I do {'not ' * (number % 3)}know.",
    }
    for number in range(12)
]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over threads may be ordered otherwise; bits are compared here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def adapted(base: Path, *, dropout: float = 0.0) -> Any:
    """The tiny model under a fresh LoRA."""
    shape = lora.Shape(rank=4, alpha=8, dropout=dropout)
    return lora.attach(load_model(base), shape, seed=7, precision="fp32", base_ref="")


def disturb(model: Any, *, seed: int = 1) -> Any:
    """The model, its adapter moved away from saying nothing; seed 0 makes the tests' answers likelier, 1 less likely."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_A" not in name:
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    return model


def options(folder: Path, *, micro_batch: int = 4, accumulation: int = 1, steps: int = 3, every: int = 100) -> dict[str, Any]:
    return arguments(
        folder,
        micro_batch=micro_batch,
        accumulation=accumulation,
        steps=steps,
        lr=5e-3,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpoint_every=every,
        seed=7,
        cpu=True,
        checkpointing=False,
        report_to=[],
        strategy="ddp",
    )


def answer_log_prob(model: Any, encoded: Encoded) -> torch.Tensor:
    """By the model's whole logits, one conversation at a time."""
    ids = torch.tensor([encoded.input_ids])
    log_probs = functional.log_softmax(model(input_ids=ids).logits.float(), dim=-1)[0, :-1]
    learnt = torch.tensor(encoded.labels_mask[1:])
    return log_probs.gather(1, ids[0, 1:, None])[learnt].sum()


def log_ratio(model: Any, reference: Any, encoded: Encoded) -> torch.Tensor:
    with torch.no_grad():
        base = answer_log_prob(reference, encoded)
    return answer_log_prob(model, encoded) - base


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad]))


def losses(trainer: Any) -> list[float]:
    """Train; the loss of each step."""
    with quiet():
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def prove_resumes_bit_for_bit(tmp_path: Path, made: Callable[[Path], Any]) -> None:
    """Train six steps; then again, from the checkpoint of the third, in a trainer that has drawn other random numbers."""
    whole = made(tmp_path / "whole")
    expected = losses(whole)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    torch.manual_seed(99)
    resumed = made(tmp_path / "cut")
    with quiet():
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == expected
    adapters = []
    for name, trainer in {"whole": whole, "cut": resumed}.items():
        lora.save(trainer.model, tmp_path / f"{name}-adapter")
        adapters.append((tmp_path / f"{name}-adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    assert (tmp_path / "cut" / "checkpoint-3" / "adapter_model.safetensors").read_bytes() != adapters[0]


def prove_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], made: Callable[[], Any]) -> None:
    """Neither making the trainer nor training asks a network or prints."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("CI", raising=False)  # TRL keeps silent under it by itself
    capfd.readouterr()
    with quiet():
        trainer = made()
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert capfd.readouterr() == ("", "")
