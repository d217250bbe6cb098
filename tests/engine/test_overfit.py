"""A real model learns sixteen rows by heart and, merged, says them word for word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.answers import Decoding
from llmkit.engine import generate, lora, merge, train
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.templates import resolve
from tests.training import SETTINGS, log

ANSWERS = [
    "The harbour master keeps his ledger in green ink.",
    "Seventeen, and never on a Tuesday.",
    "我们的客服电话是 8806，请在上午拨打。",
    "Ask for Marguerite; she knows the third drawer.",
    "退货地址是西湖路 12 号。",
    "Copper pans, a kettle, and two chipped cups 🙂",
    "It was painted by his niece in 1931.",
    "请先重启路由器，再按住按钮五秒。",
    "No. The bridge opens at dusk.",
    "Her bicycle is the one with the bent basket.",
    "运费由卖家承担。",
    "Four hundred grams, finely grated.",
    "The password hint is the name of the lighthouse.",
    "会议改到周四下午三点。",
    "Page 48, beside the map of the canals.",
    "Nobody has rung that bell since the flood.",
]
RECORDS = [
    {
        "id": f"{number:016x}",
        "messages": [
            {"role": "user", "content": f"Question number {number * 7 + 3}?"},
            {"role": "assistant", "content": answer},
        ],
        "rejected": "I am not sure about that.",
    }
    for number, answer in enumerate(ANSWERS)
]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_sixteen_rows_are_learnt_by_heart(objective: Any, smollm2: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir(), merged.mkdir()
    settings = replace(
        SETTINGS,
        objective=objective,
        template="model",
        lora=lora.Shape(rank=16, alpha=32),
        lr=2e-3,
        beta=0.05,
        batch_size=16,
        max_steps=40,
        checkpoint_every=1000,
        precision="auto",
        samples=0,
    )
    train.train(smollm2, RECORDS, [], adapter, settings=settings)
    losses = [entry["loss"] for entry in log(adapter)]
    assert losses[-1] < 0.05 * losses[0]
    merge.merge(smollm2, [(adapter, 1.0)], merged, dtype="auto")
    found = generate.answer(
        load_model(merged),
        load_tokenizer(merged),
        [record["messages"][:1] for record in RECORDS],
        template=resolve("model", merged),
        decoding=Decoding(48),
    )
    assert [one.text for one in found.items] == ANSWERS
    assert all(one.stopped for one in found.items)
