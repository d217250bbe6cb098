"""KTO on TRL's trainer, fed our tokens: which answers are desirable, and how they are weighed. Knows TRL; nothing of recipes.

Ethayarajh et al. 2024, arXiv:2402.01306. Its reference point z0 is a KL divergence estimated over a micro-batch, from each
prompt with another one's answer: a gradient depends a little on how the batch is cut into micro-batches, and a micro-batch
of one has no other answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from sys import float_info
from typing import Any

from torch import Tensor, tensor
from trl import KTOConfig, KTOTrainer

from llmkit.engine.dpo import Referenced, assembled, filled
from llmkit.engine.mask import Encoded, Encodings, Record
from llmkit.engine.trainers import Laid
from llmkit.errors import DataError, UsageError

DETAILS = (
    "kto: weight * (1 - sigmoid(beta * (log-ratio - z0))) for a desirable answer, "
    "weight * (1 - sigmoid(beta * (z0 - log-ratio))) for an undesirable one, mean over the batch's answers; "
    "log-ratio: log-probability of the answer's tokens (EOS included), summed, model minus reference; "
    "z0: the mean log-ratio of other prompts' answers in the micro-batch, at least 0"
)
LEAST, MOST = 1.0, 4 / 3  # the paper's bounds (its eq. 8) for weighted desirable over weighted undesirable answers
_REMEDY = "give the answers scores (data with kto_tag, label or score) or a rejected answer each (data.pairs)"


@dataclass(frozen=True)
class Judged:
    """A conversation whose last answer alone is learnt, and whether to learn it or to unlearn it."""

    answer: Encoded
    desirable: bool


@dataclass(frozen=True)
class Verdicts:
    """Records of `id` and `messages`, the last message an answer, by what was thought of that answer."""

    desirable: list[Record]
    undesirable: list[Record]
    threshold: float | None  # scores from here on are desirable; None where no score was read


def judged(records: Sequence[Record], *, threshold: float | None = None) -> Verdicts:
    """Sort answers into desirable and undesirable ones.

    A record with `rejected` gives one of each. A record with a `score` alone gives one: desirable where the score is at least
    `threshold`, by default 0.5 if all scores are 0 or 1, else the midpoint of the least and the greatest score. Held-out
    records are judged by the training records' threshold.

    Raises:
        DataError: a record with neither, without an answer, with a score that is no finite number, or with two equal answers.
    """
    scores = [_score(record) for record in records if record.get("rejected") is None]
    if threshold is None and scores:
        threshold = 0.5 if set(scores) <= {0.0, 1.0} else min(scores) / 2 + max(scores) / 2
    verdicts = Verdicts([], [], threshold)
    for record in records:
        name, messages = record.get("id", "?"), _upto_answer(record)
        said = {"id": name, "messages": messages}
        if record.get("rejected") is not None:
            verdicts.desirable.append(said)
            verdicts.undesirable.append({"id": name, "messages": _with_rejected(record, messages)})
        else:
            side = verdicts.desirable if threshold is not None and _score(record) >= threshold else verdicts.undesirable
            side.append(said)
    return verdicts


def encode(verdicts: Verdicts, encode_all: Callable[[list[Record]], Encodings[Encoded]]) -> Encodings[Any]:
    """The answers as `Judged` items, desirable ones first, and what was left out, counted over both kinds.

    `encode_all` is `mask.encode_all` with the last answer alone learnt.

    Raises: as `encode_all`.
    """
    up, down = encode_all(verdicts.desirable), encode_all(verdicts.undesirable)
    counts = {field.name: getattr(up, field.name) + getattr(down, field.name) for field in fields(up)}
    items = [Judged(answer, True) for answer in up.items] + [Judged(answer, False) for answer in down.items]
    return Encodings(**{**counts, "items": items})


def weights(items: Sequence[Judged]) -> tuple[float, float]:
    """The weights of desirable and undesirable answers: 1 and 1, or the one raised that keeps to the paper's rule.

    The rule: weighted desirable answers are `LEAST` to `MOST` times the weighted undesirable ones.

    Raises:
        DataError: one kind is missing.
    """
    desirable = sum(item.desirable for item in items)
    undesirable = len(items) - desirable
    if not desirable or not undesirable:
        missing = "an undesirable" if desirable else "a desirable"
        raise DataError(
            f"kto learns from both kinds of answers, and none of {len(items)} is {missing} one", code="LK0408", next=_REMEDY
        )
    ratio = desirable / undesirable
    return max(1.0, LEAST / ratio), max(1.0, ratio / MOST)


def collate(items: Sequence[Judged]) -> dict[str, Tensor]:
    """input_ids, attention_mask, completion_mask: (items, longest); the same as KL_…: each prompt with another's answer; label.

    The other answers are the items' own, rotated as TRL does (prompt i, answer i - 1), and further only where that would
    pair answers to one and the same prompt. A single item is paired with itself: z0 is then its own log-ratio.
    """
    answers = [item.answer for item in items]
    by = _rotation(answers)
    mismatched = [_spliced(answer, answers[index - by]) for index, answer in enumerate(answers)]
    return {
        **filled(answers),
        **{f"KL_{name}": rows for name, rows in filled(mismatched).items()},
        "label": tensor([item.desirable for item in items]),
    }


def build(
    model: Any,
    data: Laid[Judged],
    tokenizer: Any,
    *,
    arguments: dict[str, Any],
    bf16: bool,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Any:
    """A trainer ready to `train()`. `weights`: of desirable and of undesirable answers.

    Raises:
        UsageError: micro-batches of one, or an adapter on the output head.
    """
    if arguments["per_device_train_batch_size"] < 2:
        raise UsageError(
            "kto compares a prompt with the other answers of its micro-batch, and a micro-batch of one has none",
            code="LK0409",
            next="set finetune.micro_batch to 2 or more, with a batch_size that it divides",
        )
    config = KTOConfig(
        **arguments,
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        max_length=None,
        disable_dropout=False,  # the dropout that the LoRA was asked for stays
    )
    return assembled(_Trainer, model, data, tokenizer, config=config, collate=collate, bf16=bf16)


class _Trainer(Referenced, KTOTrainer):
    pass


def _score(record: Mapping[str, Any]) -> float:
    score = record.get("score")
    if score is None:
        raise DataError(
            "neither a score nor a rejected answer", code="LK0408", where=f"record {record.get('id', '?')}", next=_REMEDY
        )
    if not isinstance(score, int | float) or not abs(score) <= float_info.max:
        raise DataError(
            f"a score of {score!r} is no number", code="LK0404", where=f"record {record.get('id', '?')}", next=_REMEDY
        )
    return float(score)


def _upto_answer(record: Mapping[str, Any]) -> list[Any]:
    messages = list(record["messages"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise DataError(
            "the conversation has no assistant message to judge", code="LK0404", where=f"record {record.get('id', '?')}"
        )
    return messages


def _with_rejected(record: Mapping[str, Any], messages: list[Any]) -> list[Any]:
    if messages[-1]["content"].strip() == record["rejected"].strip():
        where = f"record {record.get('id', '?')}"
        raise DataError(
            "chosen and rejected are the same", code="LK0404", where=where, next="drop such pairs; `llmkit clean` does"
        )
    return [*messages[:-1], {"role": "assistant", "content": record["rejected"]}]


def _prompt(answer: Encoded) -> list[int]:
    return answer.input_ids[: answer.labels_mask.index(True)]


def _spliced(one: Encoded, other: Encoded) -> Encoded:
    """The prompt of `one` with the answer of `other`."""
    prompt = _prompt(one)
    learnt = [token for token, kept in zip(other.input_ids, other.labels_mask, strict=True) if kept]
    return replace(one, input_ids=prompt + learnt, labels_mask=[False] * len(prompt) + [True] * len(learnt))


def _rotation(answers: Sequence[Encoded]) -> int:
    """The least rotation that pairs the fewest prompts with answers to themselves."""
    prompts = [_prompt(answer) for answer in answers]

    def clashes(by: int) -> int:
        return sum(prompt == prompts[index - by] for index, prompt in enumerate(prompts))

    return min(range(1, len(answers)), key=clashes, default=0)
