"""pairs: gives dialogues a rejected answer, so that ORPO can train on data that has none. DATASET → DATASET."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit import progress
from llmkit.artifact import Artifact, Facts, Kind

if TYPE_CHECKING:
    from llmkit.data.record import Record

VERB = "pairs"
REVISION = 1
KIND = Kind.DATASET
BATCH_SIZE = 16


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    rejected: Literal["shuffle", "generate"] = Field(
        description="shuffle: another dialogue's answer; generate: the base model's own. A rejected answer that is there stays."
    )
    max_new_tokens: int = Field(64, ge=1, description="generate: the longest rejected answer, in tokens.")
    template: str = Field("model", description="generate: the chat template; the recipe's finetune.template.")
    seed: int | None = Field(None, description="None: the recipe's.")


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Facts:
    """Write train and valid with a `rejected` for every record; test is copied as it is.

    Raises:
        DataError: too few different answers to shuffle.
    """
    from llmkit.data.pairs import shuffle_rejected
    from llmkit.data.record import read_records, write_records

    dataset = inputs["dataset"].path
    counts = {"made": 0, "given": 0, "unpaired": 0}
    for split in ("train", "valid"):
        records = list(read_records(dataset / f"{split}.jsonl"))
        if config.rejected == "shuffle":
            paired = list(shuffle_rejected(records, config.seed or 0))
        else:
            paired = _generated(records, inputs["base"].path, config)
        write_records(out / f"{split}.jsonl", paired)
        given = sum(one.rejected is not None for one in records)
        counts["given"] += given
        counts["made"] += len(paired) - given
        counts["unpaired"] += len(records) - len(paired)
    shutil.copyfile(dataset / "test.jsonl", out / "test.jsonl")
    progress.note(f"pairs: {counts['made']} rejected answers made ({config.rejected}), {counts['given']} came with the data")
    return {"rejected": config.rejected, **counts}


def _generated(records: "list[Record]", base: Path, config: Config) -> "list[Record]":
    """Records with the base model's own answer as the rejected one; without those where it gave the very answer."""
    from llmkit.data.dedup import normalise
    from llmkit.engine import child, measure, templates

    asked = [one for one in records if one.rejected is None]
    if not asked:
        return records
    exam = measure.Exam(
        prompts=[one.messages[:-1] for one in asked],
        dialogues=[],
        template=templates.resolve(config.template, base),
        max_new_tokens=config.max_new_tokens,
        batch_size=BATCH_SIZE,
    )
    measured = child.run(measure.variant, base, exam, None, title="rejected answers", total=len(asked))
    answers = iter(measured.answers.items)
    filled = [one if one.rejected is not None else one._replace(rejected=next(answers).text.strip()) for one in records]
    return [one for one in filled if one.rejected and normalise(one.rejected) != normalise(one.messages[-1]["content"])]
