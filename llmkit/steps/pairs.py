"""pairs: dialogues → dialogues with a rejected answer each, for ORPO to train on. DATASET → DATASET.

Every record of train and valid ends in one of three places, and they add up: in a pair, in none (`unpaired`), or in one
whose two answers are equal (`equal`). Only the first are written.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind
from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.data.pairs import Paired
    from llmkit.data.record import Record

VERB = "pairs"
REVISION = 2
KIND = Kind.DATASET
_NAMED = 5  # doubtful pairs that are told one by one


class Config(BaseModel):
    """Where rejected answers come from. One that is there already, in an explicit preference pair, always stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rejected: Literal["shuffle", "generate"] | None = Field(
        None, description="For records without one: shuffle: another dialogue's answer; generate: the base model's own."
    )
    rating: str | None = Field(
        None, min_length=1, description="The field that rates an answer: a better and a worse one to one prompt are a pair."
    )
    edited: str | None = Field(
        None, min_length=1, description="The field that holds the corrected answer; the one it corrects is the rejected one."
    )
    max_rejected_ratio: float = Field(
        3.0, gt=0, description="A rejected answer over this many times as long as the chosen one is reported, not dropped."
    )
    max_new_tokens: int = Field(64, ge=1, description="generate: the longest rejected answer, in tokens.")
    template: str = Field("model", description="generate: the chat template; the recipe's finetune.template.")
    seed: int | None = Field(None, description="None: the recipe's.")

    @model_validator(mode="after")
    def _one_origin(self) -> "Config":
        if not (self.rejected or self.rating or self.edited):
            raise ValueError("name where pairs come from: one of rejected, rating or edited")
        if self.rating and self.edited:
            raise ValueError("rating and edited exclude each other: keep one of them")
        # An answer that was rated down and has no rival would be trained on as the chosen one.
        if self.rating and self.rejected:
            raise ValueError("rating and rejected exclude each other: keep one of them")
        return self


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Write train and valid, each record with a `rejected` and its origin in `pair`; test is copied as it is.

    Facts, over train and valid: `read` = `paired` + `unpaired` + `equal`, all in records; `pairs` {origin: count}, of which
    `near_equal` and `rejected_longer` are doubtful.

    Raises:
        DataError: no pair to train on, or too few different answers to shuffle.
    """
    from llmkit.data.pairs import review
    from llmkit.data.record import write_records

    dataset = inputs["dataset"].path
    splits = {split: _given(dataset / f"{split}.jsonl") for split in ("train", "valid")}
    counts = dict.fromkeys(("read", "paired", "unpaired", "equal", "near_equal"), 0)
    origins: Counter[str] = Counter()
    longer: list[Record] = []
    for split, records in splits.items():
        found = _pair(records, config, inputs, others=splits["train"])
        reviewed = review(found.pairs, max_rejected_ratio=config.max_rejected_ratio)
        if split == "train" and not reviewed.pairs:
            raise _nothing(config, records, dataset / "train.jsonl")
        write_records(out / f"{split}.jsonl", reviewed.pairs)
        counts["read"] += len(records)
        counts["paired"] += len(records) - found.unpaired - reviewed.equal
        counts["unpaired"] += found.unpaired
        counts["equal"] += reviewed.equal
        counts["near_equal"] += reviewed.near_equal
        origins.update(record.pair for record in reviewed.pairs)
        longer += reviewed.longer
    shutil.copyfile(dataset / "test.jsonl", out / "test.jsonl")
    facts: Facts = {**counts, "rejected_longer": len(longer), "pairs": dict(sorted(origins.items()))}
    _tell(facts, config, longer)
    return facts


def _given(path: Path) -> "list[Record]":
    """The records of a split; a rejected answer of no known origin came with the data."""
    from llmkit.data.record import read_records

    records = read_records(path)
    return [one._replace(pair="explicit") if one.rejected is not None and not one.pair else one for one in records]


def _pair(
    records: "Sequence[Record]", config: Config, inputs: Mapping[str, Artifact], *, others: "Sequence[Record]"
) -> "Paired":
    from llmkit.data.pairs import Paired, pair_by_rating, shuffle_rejected

    if config.rating:
        return pair_by_rating(records)
    if config.rejected == "shuffle":
        # A small valid may hold one answer only: those of train are at hand too.
        return Paired(list(shuffle_rejected(records, config.seed or 0, others=others)), 0)
    if config.rejected == "generate":
        return _generated(records, inputs["base"].path, config)
    pairs = [record for record in records if record.rejected is not None]
    return Paired(pairs, len(records) - len(pairs))


def _generated(records: "Sequence[Record]", base: Path, config: Config) -> "Paired":
    """Records with the base model's own answer as the rejected one; unpaired where it gave the very answer, or none."""
    from llmkit import answers
    from llmkit.data.near import normalise
    from llmkit.data.pairs import Paired
    from llmkit.engine import child, measure, templates

    asked = [one for one in records if one.rejected is None]
    if not asked:
        return Paired(list(records), 0)
    prompts: list[Any] = [one.messages[:-1] for one in asked]
    quiz = measure.Quiz("rejected", prompts, answers.keys(prompts), answers.Decoding(config.max_new_tokens))
    exam = measure.Exam([quiz], [], templates.resolve(config.template, base))
    measured = child.run(measure.variant, base, exam, None, {}, title="rejected answers", total=len(asked))
    generated = iter(measured.answers[quiz.name])
    pairs: list[Record] = []
    for one in records:
        if one.rejected is not None:
            pairs.append(one)
            continue
        answer = next(generated).text.strip()
        if answer and normalise(answer) != normalise(one.messages[-1]["content"]):
            pairs.append(one._replace(rejected=answer, pair="generated"))
    return Paired(pairs, len(records) - len(pairs))


def _nothing(config: Config, records: "Sequence[Record]", path: Path) -> DataError:
    if not records:
        return DataError(
            "the dataset has no training record", code="LK0217", where=str(path), next="loosen clean's rules or add data"
        )
    if config.rating and any(record.score is not None for record in records):
        reason, remedy = "no prompt has two answers with different ratings", "add rated answers, or use data.pairs.rejected"
    elif config.rating:
        reason, remedy = f"no record is rated by {config.rating!r}", "set data.pairs.rating to the field that holds the rating"
    elif config.edited and all(record.rejected is None for record in records):
        reason = f"no record has an answer corrected by {config.edited!r}"
        remedy = "set data.pairs.edited to the field that holds the corrected answer"
    else:
        reason = "each rejected answer says the same as the chosen one"
        remedy = "add dialogues, or choose another data.pairs.rejected"
    return DataError(f"no preference pairs to train on: {reason}", code="LK0209", where=str(path), next=remedy)


def _tell(facts: Facts, config: Config, longer: "Sequence[Record]") -> None:
    made = ", ".join(f"{count} {origin}" for origin, count in facts["pairs"].items())
    progress.note(f"pairs: {made}; {facts['unpaired']} of {facts['read']} dialogues are in none and left out")
    wanted, field = ("rating", config.rating) if config.rating else ("edit", config.edited)
    if field and wanted not in facts["pairs"]:
        progress.note(f"warning: the field {field!r} gave no pair; is it the right one?")
    if facts["equal"]:
        progress.note(f"warning: {facts['equal']} pairs with two equal answers are left out")
    if facts["near_equal"]:
        progress.note(f"warning: {facts['near_equal']} pairs have two nearly equal answers")
    if longer:
        sources = list(dict.fromkeys(record.source for record in longer))
        named = ", ".join(sources[:_NAMED]) + (", …" if len(sources) > _NAMED else "")
        progress.note(
            f"warning: {len(longer)} rejected answers are over {config.max_rejected_ratio:g} times as long as the chosen ones, "
            f"which teaches to be brief: {named}"
        )
