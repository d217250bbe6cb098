"""The objectives as one table: what each makes of records, and the trainer that learns it. Knows records; nothing of files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from llmkit.engine import dpo, kto, mask, orpo, sft, trainers
from llmkit.engine.mask import Encoded, Encodings, Pair, Record
from llmkit.engine.templates import ChatTemplate
from llmkit.engine.trainers import Laid
from llmkit.errors import DataError

Name = Literal["sft", "orpo", "dpo", "kto"]


@dataclass(frozen=True)
class Reading:
    """How records become tokens. `max_length` in tokens; `on_overlong` and `loss_on` as `mask.encode_all` has them."""

    tokenizer: Any
    template: ChatTemplate
    max_length: int
    on_overlong: mask.OnOverlong
    loss_on: mask.LossOn


@dataclass(frozen=True)
class Task:
    """An objective over one run's data.

    `valid`: items that the objective's own loss is measured on, perhaps none; `counts`: records cut or left out, by how;
    `learnt`: the conversation of an item that stands for its length and its record; `build(model, data, arguments)`: a
    trainer; `packed`: whether its model must be inside `loss.scoring`; `least`: items that a micro-batch must hold.
    """

    items: Sequence[Any]
    valid: Sequence[Any]
    counts: Mapping[str, int]
    details: str
    learnt: Callable[[Any], Encoded]
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    build: Callable[[Any, Laid[Any], Mapping[str, Any]], Any]
    packed: bool
    least: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)


def prepare(
    name: Name,
    train: Sequence[Record],
    valid: Sequence[Record],
    reading: Reading,
    *,
    beta: float,
    nll_on: orpo.NllOn,
    bf16: bool,
) -> Task:
    """The task `name` over records (id, messages, perhaps rejected or score).

    Raises:
        DataError: a record that the template or the objective cannot use.
        Others: as `mask.encode_all`.
    """
    if name == "sft":
        return _sft(train, valid, reading, bf16=bf16)
    if name == "kto":
        return _kto(train, valid, reading, beta=beta, bf16=bf16)
    return _paired(name, train, valid, reading, beta=beta, nll_on=nll_on, bf16=bf16)


def conversations(records: Sequence[Record], reading: Reading, *, loss_on: mask.LossOn | None = None) -> Encodings[Encoded]:
    """Records as conversations whose answers (by default those that `reading` says) are learnt."""
    return mask.encode_all(
        records,
        reading.tokenizer,
        reading.template,
        max_length=reading.max_length,
        on_overlong=reading.on_overlong,
        loss_on=loss_on or reading.loss_on,
    )


def _sft(train: Sequence[Record], valid: Sequence[Record], reading: Reading, *, bf16: bool) -> Task:
    encoded = conversations(train, reading)
    return Task(
        encoded.items,
        conversations(valid, reading).items,
        _counts(encoded),
        sft.DETAILS,
        lambda item: item,
        sft.collate,
        partial(_core, sft.collate, sft.loss, bf16),
        packed=True,
    )


def _paired(
    name: Name,
    train: Sequence[Record],
    valid: Sequence[Record],
    reading: Reading,
    *,
    beta: float,
    nll_on: orpo.NllOn,
    bf16: bool,
) -> Task:
    encoded = _pairs(train, reading)
    held_out = _pairs([record for record in valid if record.get("rejected") is not None], reading).items
    if name == "dpo":
        build = _on_trl(dpo.build, reading.tokenizer, bf16=bf16, beta=beta)
        return Task(encoded.items, held_out, _counts(encoded), dpo.DETAILS, _chosen, dpo.collate, build, packed=False)
    collate = partial(orpo.collate, nll_on=nll_on)
    build = partial(_core, collate, partial(orpo.loss, beta=beta, nll_on=nll_on), bf16)
    details = orpo.DETAILS[nll_on] + orpo.ODDS
    return Task(encoded.items, held_out, _counts(encoded), details, _chosen, collate, build, packed=True)


def _kto(train: Sequence[Record], valid: Sequence[Record], reading: Reading, *, beta: float, bf16: bool) -> Task:
    encode = partial(conversations, reading=reading, loss_on="last")
    verdicts = kto.judged(train)
    encoded = kto.encode(verdicts, encode)
    weights = kto.weights(encoded.items)
    told = [record for record in valid if record.get("rejected") is not None or record.get("score") is not None]
    held_out = kto.encode(kto.judged(told, threshold=verdicts.threshold), encode).items
    facts = {"desirable_weight": weights[0], "undesirable_weight": weights[1], "score_threshold": verdicts.threshold}
    return Task(
        encoded.items,
        held_out,
        _counts(encoded),
        kto.DETAILS,
        lambda item: item.answer,
        kto.collate,
        _on_trl(kto.build, reading.tokenizer, bf16=bf16, beta=beta, weights=weights),
        packed=False,
        least=2,  # a prompt is compared with the other answers of its micro-batch
        facts=facts,
    )


def _pairs(records: Sequence[Record], reading: Reading) -> Encodings[Pair]:
    bare = [str(record.get("id", "?")) for record in records if record.get("rejected") is None]
    if bare:
        raise DataError(
            "no rejected answer to prefer the chosen one to", code="LK0209", where=f"record {bare[0]}", next="add data.pairs"
        )
    return mask.encode_pairs(
        records, reading.tokenizer, reading.template, max_length=reading.max_length, on_overlong=reading.on_overlong
    )


def _counts(encoded: Any) -> dict[str, int]:
    return {name: getattr(encoded, name, 0) for name in ("overlong", "truncated", "split", "forged")}


def _chosen(item: Pair) -> Encoded:
    return item.chosen


def _core(collate: Any, loss: Any, bf16: bool, model: Any, data: Laid[Any], arguments: Mapping[str, Any]) -> Any:
    return trainers.build(model, data, arguments=arguments, collate=collate, loss=loss, bf16=bf16)


def _on_trl(build: Callable[..., Any], tokenizer: Any, **options: Any) -> Callable[[Any, Laid[Any], Mapping[str, Any]], Any]:
    def made(model: Any, data: Laid[Any], arguments: Mapping[str, Any]) -> Any:
        return build(model, data, tokenizer, arguments=dict(arguments), **options)

    return made
