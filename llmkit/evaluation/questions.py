"""What is asked: held-out dialogues, their last answer taken off. Knows the dataset's lines; nothing of models or scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit import answers, artifact
from llmkit.errors import DataError


@dataclass(frozen=True)
class Question:
    """A held-out dialogue: what is asked, and what the data answers. `source` is the data file it came from."""

    id: str
    prompt: list[dict[str, str]]
    reference: str
    language: str
    source: str

    @property
    def dialogue(self) -> list[dict[str, str]]:
        return [*self.prompt, {"role": "assistant", "content": self.reference}]

    @property
    def key(self) -> str:
        return answers.key(self.prompt)


def read(path: Path, limit: int | None) -> list[Question]:
    """The first `limit` dialogues (None: all) that end on an answer.

    Raises:
        DataError: there is none, or a line is no record.
    """
    from llmkit.data import language, record

    found: list[Question] = []
    for one in record.read_records(path):
        *prompt, last = [{"role": message["role"], "content": message["content"]} for message in one.messages] or [{}]
        if prompt and last["role"] == "assistant" and last["content"].strip():
            spoken = language.language(f"{prompt[-1]['content']}\n{last['content']}")
            found.append(Question(one.id, prompt, last["content"], spoken, one.source.rpartition(":")[0] or one.source))
        if limit and len(found) == limit:
            break
    if not found:
        raise DataError(
            "the test split is empty",
            code="LK0217",
            where=str(path),
            next="give clean more dialogues, or data.split a larger test share",
        )
    return found


def digest(questions: Sequence[Question]) -> str:
    """Names the prompts and their references: reports are comparable where it is the same."""
    return artifact.digest([[one.id, one.key, one.reference] for one in questions])
