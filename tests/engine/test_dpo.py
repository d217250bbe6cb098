"""DPO: its loss against the paper's equation and TRL's own pipeline, its gradients, its checkpoints, what it leaves alone."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import Trainer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmkit.engine import dpo, lora, mask
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.mask import Encoded, Pair
from llmkit.engine.trainers import Laid, quiet
from llmkit.errors import UsageError
from tests.preference import (
    BETA,
    PLAIN,
    RECORDS,
    adapted,
    disturb,
    gradients,
    log_ratio,
    losses,
    one_thread,
    options,
    prove_resumes_bit_for_bit,
    prove_silent,
)

TOKENS = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def ordered_sums() -> Iterator[None]:
    with one_thread():
        yield


def pairs(base: Path) -> list[Pair]:
    tokenizer = load_tokenizer(base)
    return [mask.encode_pair(record, tokenizer, PLAIN) for record in RECORDS]


def trainer(base: Path, folder: Path, model: Any, items: Sequence[Pair], *, bf16: bool = False, **changes: Any) -> Any:
    given = options(folder, **changes)
    needed = given["max_steps"] * given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    data = Laid(items, [number % len(items) for number in range(needed)])
    return dpo.build(model, data, load_tokenizer(base), arguments=given, bf16=bf16, beta=BETA)


def equation_7(model: Any, reference: Any, items: Sequence[Pair]) -> torch.Tensor:
    """Rafailov et al. 2023."""
    margins = [log_ratio(model, reference, item.chosen) - log_ratio(model, reference, item.rejected) for item in items]
    return torch.stack([-functional.logsigmoid(BETA * margin) for margin in margins]).mean()


def test_loss_and_gradients_are_equation_7(tiny_model: Path, tmp_path: Path) -> None:
    model, items = adapted(tiny_model), pairs(tiny_model)[:4]
    ready = trainer(tiny_model, tmp_path, model, items)
    disturb(model)  # after the start, which is the reference
    model.train()
    ours = ready.compute_loss(model, dpo.collate(items))
    expected = equation_7(model, load_model(tiny_model), items)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(ours.item() - math.log(2)) > 1e-2
    for one, other in zip(gradients(model, ours), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_held_out_loss_is_measured_in_eval_mode_and_leaves_the_log_alone(tiny_model: Path, tmp_path: Path) -> None:
    model, items = adapted(tiny_model, dropout=0.5), pairs(tiny_model)
    ready = trainer(tiny_model, tmp_path, model, items)
    disturb(model).eval()
    with torch.no_grad():
        ours = ready.compute_loss(model, dpo.collate(items[:3])).item()
        expected = equation_7(model, load_model(tiny_model), items[:3]).item()
    assert ours == pytest.approx(expected, abs=1e-5)
    losses(ready)
    trained_on = sum(len(item.chosen.input_ids) + len(item.rejected.input_ids) for item in items[:4])
    assert ready.state.log_history[0]["tokens"] == trained_on


@pytest.mark.parametrize("bf16", [False, True])
def test_a_fresh_adapter_starts_at_log_2_and_keeps_no_second_adapter(tiny_model: Path, tmp_path: Path, bf16: bool) -> None:
    model = adapted(tiny_model)
    ready = trainer(tiny_model, tmp_path, model, pairs(tiny_model), bf16=bf16)
    assert list(model.peft_config) == ["default"]
    assert not any(".ref." in name for name in model.state_dict())
    assert ready.ref_model is None
    seen = losses(ready)
    assert seen[0] == pytest.approx(math.log(2), abs=1e-6)
    assert seen[-1] < seen[0]
    assert {"rewards/margins", "rewards/accuracies"} <= ready.state.log_history[0].keys()


def test_an_adapter_trained_before_is_its_own_reference(tiny_model: Path, tmp_path: Path) -> None:
    model, start, items = disturb(adapted(tiny_model)), disturb(adapted(tiny_model)), pairs(tiny_model)[:4]
    ready = trainer(tiny_model, tmp_path, model, items, every=3)
    assert losses(ready)[0] == pytest.approx(math.log(2), abs=1e-6)
    model.eval()
    with torch.no_grad():
        ours = ready.compute_loss(model, dpo.collate(items)).item()
        assert ours == pytest.approx(equation_7(model, start.eval(), items).item(), abs=1e-5)
    assert ours < 0.6
    assert (tmp_path / "checkpoint-3" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-3" / "ref").exists()


def test_without_an_adapter_the_whole_model_learns_against_a_frozen_copy(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    ready = trainer(tiny_model, tmp_path, model, pairs(tiny_model))
    ready.keep = lora.save_full
    assert losses(ready)[0] == pytest.approx(math.log(2), abs=1e-6)
    before = load_model(tiny_model).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in ready.ref_model.state_dict().items())
    assert not any(torch.equal(weight, before[name]) for name, weight in model.state_dict().items() if "proj" in name)


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4))
def test_batches_are_those_of_trls_collator(conversations: list[tuple[list[int], list[int], list[int]]]) -> None:
    def encoded(prompt: list[int], answer: list[int]) -> Encoded:
        return Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer))

    theirs = DataCollatorForPreference(pad_token_id=0)(
        [{"prompt_ids": prompt, "chosen_ids": good, "rejected_ids": bad} for prompt, good, bad in conversations]
    )
    ours = dpo.collate([Pair(encoded(prompt, good), encoded(prompt, bad)) for prompt, good, bad in conversations])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_losses_are_those_of_trl_on_its_own_pipeline(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DPOTrainer, "_send_telemetry", lambda self: None)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = PLAIN.text
    rows = [
        {
            "prompt": record["messages"][:-1],
            "chosen": record["messages"][-1:],
            "rejected": [{"role": "assistant", "content": record["rejected"]}],
        }
        for record in RECORDS
    ]
    config = DPOConfig(**options(tmp_path), beta=BETA, disable_dropout=False, train_sampling_strategy="sequential")
    with quiet():
        data = datasets.Dataset.from_list(rows)
        theirs = DPOTrainer(adapted(tiny_model), args=config, train_dataset=data, processing_class=tokenizer)
    ours = trainer(tiny_model, tmp_path, adapted(tiny_model), pairs(tiny_model))
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_do_not_change_the_gradient(
    tiny_model: Path, tmp_path: Path, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[torch.Tensor]] = []

    def remember(self: Any, *_: Any, **__: Any) -> None:
        seen.append([weight.grad.clone() for weight in self.model.parameters() if weight.requires_grad])

    monkeypatch.setattr(Trainer, "_clip_grad_norm", remember)
    for size in (4, micro_batch):
        model = adapted(tiny_model)
        ready = trainer(tiny_model, tmp_path, model, pairs(tiny_model)[:4], micro_batch=size, accumulation=4 // size, steps=1)
        disturb(model)
        losses(ready)
    assert any(gradient.abs().max() > 1e-3 for gradient in seen[0])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    def made(folder: Path) -> Any:
        model = adapted(tiny_model, dropout=0.3)
        return trainer(tiny_model, folder, model, pairs(tiny_model), micro_batch=2, accumulation=2, steps=6, every=3)

    prove_resumes_bit_for_bit(tmp_path, made)


def test_nothing_is_asked_of_a_network_and_nothing_is_printed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, items = adapted(tiny_model), pairs(tiny_model)
    prove_silent(monkeypatch, capfd, lambda: trainer(tiny_model, tmp_path, model, items, every=3))
    assert (tmp_path / "checkpoint-3").is_dir()
    assert not list(tmp_path.rglob("training_args.bin"))


def test_tokenizer_and_special_tokens_of_the_model_are_left_as_they_were(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_model), load_tokenizer(tiny_model)
    tokenizer.pad_token = None
    configs = [model.config, model.generation_config]
    for config in configs:
        config.pad_token_id = None
    before = [dict(tokenizer.special_tokens_map), *[(config.eos_token_id, config.pad_token_id) for config in configs]]
    ready = dpo.build(model, Laid(pairs(tiny_model), range(12)), tokenizer, arguments=options(tmp_path), bf16=False, beta=BETA)
    losses(ready)
    assert [dict(tokenizer.special_tokens_map), *[(c.eos_token_id, c.pad_token_id) for c in configs]] == before
    assert tokenizer.pad_token is None


def test_an_adapter_over_a_4_bit_base_keeps_its_precision(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    model.get_base_model().is_loaded_in_4bit = True
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer(tiny_model, tmp_path, model, pairs(tiny_model))
    after = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) and weight.dtype == torch.float32 for name, weight in after.items())


def test_the_adapters_dropout_stays_and_the_bases_own_goes(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model, dropout=0.3)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.attention_dropout = 0.5
        layer.mlp.register_module("extra", torch.nn.Dropout(0.5))
    trainer(tiny_model, tmp_path, model, pairs(tiny_model))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if "lora_dropout" in name} == {0.3}
    assert {rate for name, rate in rates.items() if name.endswith("extra")} == {0.0}
    assert all(layer.self_attn.attention_dropout == 0.0 for layer in model.get_base_model().model.layers)


def test_an_adapter_on_the_output_head_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = get_peft_model(load_model(tiny_model), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="output head"):
        trainer(tiny_model, tmp_path, model, pairs(tiny_model))
