"""KTO: which answers are desirable, their weights and mismatched answers, its loss against the paper's, its checkpoints."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from llmkit.engine import kto, mask
from llmkit.engine.kto import Judged
from llmkit.engine.loading import load_model, load_tokenizer
from llmkit.engine.mask import Encoded, Encodings, Record
from llmkit.engine.trainers import Laid, quiet
from llmkit.errors import DataError, UsageError
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
WEIGHTS = (1.0, 1.5)


@pytest.fixture(autouse=True)
def ordered_sums() -> Iterator[None]:
    with one_thread():
        yield


def encoded(prompt: Sequence[int], answer: Sequence[int], tail: Sequence[int] = ()) -> Encoded:
    return Encoded([*prompt, *answer, *tail], [False] * len(prompt) + [True] * len(answer) + [False] * len(tail))


def items_of(base: Path) -> list[Judged]:
    """Of twelve questions, every third answer undesirable."""
    tokenizer = load_tokenizer(base)
    return [
        Judged(mask.encode(record["messages"], tokenizer, PLAIN, last_only=True), number % 3 != 0)
        for number, record in enumerate(RECORDS)
    ]


def trainer(base: Path, folder: Path, model: Any, items: Sequence[Judged], *, bf16: bool = False, **changes: Any) -> Any:
    given = options(folder, **changes)
    needed = given["max_steps"] * given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    data = Laid(items, [number % len(items) for number in range(needed)])
    return kto.build(model, data, load_tokenizer(base), arguments=given, bf16=bf16, beta=BETA, weights=WEIGHTS)


def equation_8(model: Any, reference: Any, items: Sequence[Judged]) -> torch.Tensor:
    """Ethayarajh et al. 2024: the mean of lambda - v, v by z0 of each prompt with the answer before it."""
    prompts = [item.answer.input_ids[: item.answer.labels_mask.index(True)] for item in items]
    answers = [item.answer.input_ids[len(prompt) :] for item, prompt in zip(items, prompts, strict=True)]
    crossed = [encoded(prompt, answers[number - 1]) for number, prompt in enumerate(prompts)]
    with torch.no_grad():
        z0 = torch.stack([log_ratio(model, reference, item) for item in crossed]).mean().clamp(min=0)
    lost = []
    for item in items:
        gain = BETA * (log_ratio(model, reference, item.answer) - z0)
        weight = WEIGHTS[0] if item.desirable else WEIGHTS[1]
        lost.append(weight - weight * torch.sigmoid(gain if item.desirable else -gain))
    return torch.stack(lost).mean()


# Which answers are desirable


def said(text: str, **more: Any) -> Record:
    return {"id": text, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], **more}


def answers(records: Sequence[Record]) -> list[str]:
    return [record["messages"][-1]["content"] for record in records]


def test_a_pair_gives_its_answer_as_desirable_and_the_rejected_one_as_undesirable() -> None:
    verdicts = kto.judged([said("good", rejected="bad", score=0.0)])
    assert (answers(verdicts.desirable), answers(verdicts.undesirable)) == (["good"], ["bad"])
    assert verdicts.desirable[0]["messages"][:-1] == verdicts.undesirable[0]["messages"][:-1]
    assert verdicts.threshold is None


@pytest.mark.parametrize(
    ("scores", "desirable", "threshold"),
    [
        ([0, 1, 1], [False, True, True], 0.5),
        ([0, 0], [False, False], 0.5),
        ([1.0, 1.0], [True, True], 0.5),
        ([True, False], [True, False], 0.5),
        ([1, 2, 3, 4, 5], [False, False, True, True, True], 3.0),
        ([-1, 1], [False, True], 0.0),
        ([-1e308, 1e308], [False, True], 0.0),
    ],
)
def test_a_score_is_weighed_against_the_middle_of_its_scale(
    scores: list[float], desirable: list[bool], threshold: float
) -> None:
    verdicts = kto.judged([said(str(number), score=score) for number, score in enumerate(scores)])
    assert verdicts.threshold == threshold
    assert answers(verdicts.desirable) == [str(number) for number, kind in enumerate(desirable) if kind]
    assert answers(verdicts.undesirable) == [str(number) for number, kind in enumerate(desirable) if not kind]


def test_held_out_scores_are_weighed_by_the_training_scores() -> None:
    trained = kto.judged([said(str(score), score=score) for score in range(11)])
    held_out = kto.judged([said("four", score=4), said("six", score=6)], threshold=trained.threshold)
    assert (answers(held_out.desirable), answers(held_out.undesirable)) == (["six"], ["four"])


def test_what_follows_the_judged_answer_is_left_out() -> None:
    record = said("good", score=1)
    record = {**record, "messages": [*record["messages"], {"role": "user", "content": "thanks"}]}
    assert answers(kto.judged([record]).desirable) == ["good"]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (said("plain"), "neither a score nor a rejected"),
        (said("odd", score="high"), "no number"),
        (said("odd", score=float("nan")), "no number"),
        (said("odd", score=10**400), "no number"),
        (said("same", rejected=" same"), "are the same"),
        ({"id": "mute", "messages": [{"role": "user", "content": "?"}], "score": 1}, "no assistant message"),
    ],
)
def test_a_record_that_cannot_be_judged_is_named(record: Record, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        kto.judged([said("fine", score=1), record])
    assert record["id"] in str(caught.value.where)


def test_each_kind_is_encoded_and_what_was_left_out_is_counted() -> None:
    def encode_all(records: list[Record]) -> Encodings[Encoded]:
        kept = [encoded([1], [len(text)]) for text in answers(records) if text != "long"]
        return Encodings(kept, overlong=len(records) - len(kept), forged=1)

    done = kto.encode(kto.judged([said("aa", rejected="b"), said("long", score=0)]), encode_all)
    assert [(item.answer.input_ids, item.desirable) for item in done.items] == [([1, 2], True), ([1, 1], False)]
    assert (done.overlong, done.forged) == (1, 2)


# Weights


@given(st.integers(1, 400), st.integers(1, 400))
def test_weights_keep_to_the_papers_rule_and_raise_only_the_rarer_kind(desirable: int, undesirable: int) -> None:
    answer = encoded([1], [2])
    up, down = kto.weights([Judged(answer, True)] * desirable + [Judged(answer, False)] * undesirable)
    assert 1 - 1e-9 <= up * desirable / (down * undesirable) <= 4 / 3 + 1e-9
    assert min(up, down) == 1.0
    if undesirable <= desirable <= undesirable * 4 / 3:
        assert (up, down) == (1.0, 1.0)


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_answers_alone_is_refused(kind: bool) -> None:
    with pytest.raises(DataError, match="an undesirable" if kind else "a desirable"):
        kto.weights([Judged(encoded([1], [2]), kind)] * 3)


# Batches


@given(st.lists(st.tuples(TOKENS, TOKENS, st.booleans()), min_size=2, max_size=5, unique_by=lambda row: tuple(row[0])))
def test_batches_are_those_of_trls_collator(rows: list[tuple[list[int], list[int], bool]]) -> None:
    theirs = DataCollatorForUnpairedPreference(pad_token_id=0)(
        [
            {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": rows[number - 1][1], "label": label}
            for number, (prompt, answer, label) in enumerate(rows)
        ]
    )
    ours = kto.collate([Judged(encoded(prompt, answer), label) for prompt, answer, label in rows])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_prompt_is_paired_with_another_prompts_answer_where_there_is_one() -> None:
    rows = [encoded([1], [11], [9]), encoded([1], [12], [9]), encoded([2], [21], [9]), encoded([2], [22], [9])]
    batch = kto.collate([Judged(row, True) for row in rows])
    assert batch["KL_input_ids"].tolist() == [[1, 21], [1, 22], [2, 11], [2, 12]]
    alike = kto.collate([Judged(row, True) for row in rows[:2]])
    assert alike["KL_input_ids"].tolist() == [[1, 12], [1, 11]]


def test_a_batch_of_one_can_be_made() -> None:
    assert kto.collate([Judged(encoded([1], [2]), True)])["KL_input_ids"].tolist() == [[1, 2]]


# Training


@pytest.mark.parametrize("likelier", [True, False])
def test_loss_and_gradients_are_equation_8(tiny_model: Path, tmp_path: Path, likelier: bool) -> None:
    model, items = adapted(tiny_model), items_of(tiny_model)[:4]
    ready = trainer(tiny_model, tmp_path, model, items)
    disturb(model, seed=0 if likelier else 1)  # after the start, which is the reference
    model.train()
    ours = ready.compute_loss(model, kto.collate(items))
    assert (ready._metrics["train"]["kl"][0] > 0.1) == likelier  # a negative one counts as none
    expected = equation_8(model, load_model(tiny_model), items)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(ours.item() - (2 * 1.0 + 2 * 1.5) / 8) > 1e-2  # not where it started
    for one, other in zip(gradients(model, ours), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_held_out_loss_is_measured_in_eval_mode(tiny_model: Path, tmp_path: Path) -> None:
    model, items = adapted(tiny_model, dropout=0.5), items_of(tiny_model)
    ready = trainer(tiny_model, tmp_path, model, items)
    disturb(model).eval()
    with torch.no_grad():
        ours = ready.compute_loss(model, kto.collate(items[:3])).item()
        assert ours == pytest.approx(equation_8(model, load_model(tiny_model), items[:3]).item(), abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_fresh_adapter_starts_at_half_the_weights_and_logs_margins(tiny_model: Path, tmp_path: Path, bf16: bool) -> None:
    model = adapted(tiny_model)
    ready = trainer(tiny_model, tmp_path, model, items_of(tiny_model), bf16=bf16)
    assert list(model.peft_config) == ["default"]
    assert losses(ready)[0] == pytest.approx((2 * 1.0 + 2 * 1.5) / 8, abs=1e-6)
    assert "rewards/margins" in ready.state.log_history[0]


def test_losses_are_those_of_trl_on_its_own_pipeline(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KTOTrainer, "_send_telemetry", lambda self: None)
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = PLAIN.text
    items = items_of(tiny_model)
    rows = [
        {"prompt": record["messages"][:-1], "completion": record["messages"][-1:], "label": item.desirable}
        for record, item in zip(RECORDS, items, strict=True)
    ]
    config = KTOConfig(
        **options(tmp_path), beta=BETA, disable_dropout=False, desirable_weight=WEIGHTS[0], undesirable_weight=WEIGHTS[1]
    )
    with quiet():
        data = datasets.Dataset.from_list(rows)
        theirs = KTOTrainer(adapted(tiny_model), args=config, train_dataset=data, processing_class=tokenizer)
    ours = trainer(tiny_model, tmp_path, adapted(tiny_model), items)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    def made(folder: Path) -> Any:
        model = adapted(tiny_model, dropout=0.3)
        return trainer(tiny_model, folder, model, items_of(tiny_model), micro_batch=2, accumulation=2, steps=6, every=3)

    prove_resumes_bit_for_bit(tmp_path, made)


def test_nothing_is_asked_of_a_network_and_nothing_is_printed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, items = adapted(tiny_model), items_of(tiny_model)
    prove_silent(monkeypatch, capfd, lambda: trainer(tiny_model, tmp_path, model, items, every=3))
    assert (tmp_path / "checkpoint-3").is_dir()


def test_micro_batches_of_one_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="micro-batch of one") as caught:
        trainer(tiny_model, tmp_path, adapted(tiny_model), items_of(tiny_model), micro_batch=1)
    assert "finetune.micro_batch" in str(caught.value.next)
