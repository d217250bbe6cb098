"""What the tests of training share: records, settings, a run on the tiny model, its log, and a counting progress sink."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit import progress
from llmkit.engine import lora, train

SETTINGS = train.Settings(
    objective="sft",
    method="lora",
    template="chatml",
    loss_on="all",
    on_overlong="drop",
    lora=lora.Shape(rank=4, alpha=8, dropout=0.1),
    lr=5e-3,
    beta=0.1,
    nll_on="response",
    epochs=3,
    max_steps=None,
    batch_size=4,
    micro_batch=None,
    max_length=200,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    checkpoint_every=2,
    patience=None,
    samples=1,
    precision="fp32",
    seed=7,
)
STILL = lora.Shape(rank=4, alpha=8)  # no dropout
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


def finetune(base: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return train.train(base, RECORDS, RECORDS[:4], out, settings=replace(SETTINGS, **changes), base_ref="demo:tiny")


def log(out: Path, has: str = "loss") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return [entry for entry in entries if has in entry]


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


OBJECTIVES = ("sft", "orpo", "dpo", "kto")
# Each run of the resume tests: an objective with a method.
RUNS = {name: {"objective": name} for name in OBJECTIVES} | {
    "full": {"method": "full", "lr": 1e-3},
    "dora": {"lora": lora.Shape(rank=4, alpha=8, dropout=0.1, rslora=True, dora=True, modules_to_save=("norm",))},
}
