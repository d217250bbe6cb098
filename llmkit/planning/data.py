"""How long the records are that a run will see, in tokens, without a tokenizer. Knows records and files; nothing of models.

Tokens are guessed from bytes, English and other letters apart: a vocabulary of over a hundred thousand holds Chinese words,
a smaller one spells most characters out in bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.artifact import Artifact
from llmkit.data import formats, reading, record, unpack
from llmkit.engine import batches  # plain arithmetic, no torch
from llmkit.errors import DataError
from llmkit.origin import files_of
from llmkit.planning.training import Load

# Bytes a token, measured with Gemma's and SmolLM2's tokenizers on 2,620 Chinese and English messages.
ASCII, OTHER, OTHER_SMALL = 4.0, 4.2, 1.7
LARGE = 100_000  # entries of a vocabulary
MARKS = 6  # tokens that a chat template puts around a message
MOST = 20_000  # records that are read
_PAIRED = ("orpo", "dpo")


@dataclass(frozen=True)
class Sample:
    """One record, in tokens: `prompt`, its `answer` (every assistant's), and the `rejected` one, 0 where there is none."""

    prompt: int
    answer: int
    rejected: int = 0


@dataclass(frozen=True)
class Data:
    """What is known of a dataset. `records`: how many there are, of which `samples` were looked at; `origin`: where."""

    samples: Sequence[Sample]
    records: int
    size: int
    origin: str


@dataclass(frozen=True)
class Course:
    """What a run sees: its largest micro-batch, and in all so many steps and tokens, `scored` of them learnt."""

    load: Load
    steps: int
    tokens: int
    scored: int


def of_split(path: Path, *, vocabulary: int) -> Data | None:
    """What a canonical JSONL file holds; None where there is none that can be read. `vocabulary`: the tokenizer's size."""
    try:
        size = path.stat().st_size
        found = [_sample(one.messages, one.rejected, vocabulary) for one in islice(record.read_records(path), MOST)]
    except (OSError, DataError):
        return None
    return Data(found, _scaled(found, size), size, path.parent.name)


def of_sources(sources: Sequence[Artifact], *, vocabulary: int, min_turns: int, max_chars: int, train: float) -> Data | None:
    """What plain JSON lines of the raw sources would leave for training; None where they hold none.

    `train`: that side's share. Repetitions and finer rules are not looked for, so fewer records may come.
    """
    files = [file for one in sources for file in files_of(one) if file.is_file() and unpack.is_plain(file)]
    found, read = [], 0
    for messages, rejected in islice(_raw(files), MOST):
        read += 1
        turns = sum(one["role"] != "system" for one in messages)
        if turns >= min_turns and all(len(one["content"]) <= max_chars for one in messages):
            found.append(_sample(messages, rejected, vocabulary))
    if not found:
        return None
    size = sum(file.stat().st_size for file in files)
    whole = read < MOST
    records = len(found) if whole else round(len(found) / read * _scaled(found, size))
    return Data(found, max(1, round(records * train)), size, "the sources, uncleaned")


def course(data: Data, settings: Mapping[str, Any], *, seed: int) -> Course:
    """The batches that training would lay out over such lengths; `settings`: finetune's configuration."""
    paired, longest = settings["objective"] in _PAIRED, settings["max_length"]
    kept = [one for one in data.samples if one.prompt + one.answer <= longest]
    if not kept:
        return _worst(settings, records=data.records)
    size = max(1, min(settings["batch_size"], data.records))
    steps = batches.steps_for(data.records, batch_size=size, epochs=settings["epochs"], max_steps=settings["max_steps"])
    laid = min(steps, -(-2 * len(kept) // size))  # two passes over what was looked at show its largest batch
    order = batches.layout([one.prompt + one.answer for one in kept], batch_size=size, steps=laid, seed=seed)
    micro = min(settings["micro_batch"] or size, max(1, size // settings["processes"]))
    rows = [[kept[index] for index in order[start : start + micro]] for start in range(0, len(order), micro)]
    loads = [_load(row, paired=paired) for row in rows]
    scale = steps / laid
    totals = (round(scale * sum(getattr(one, name) for one in loads)) for name in ("tokens", "scored"))
    return Course(max(loads, key=lambda one: one.tokens), steps, *totals)


def worst(settings: Mapping[str, Any]) -> Course:
    """Of data that nobody has seen: every record as long as it may be. Steps are 0 where epochs decide."""
    return _worst(settings, records=0)


def longest_prompt(data: Data | None, *, count: int | None, default: int) -> int:
    prompts = [one.prompt for one in data.samples[:count]] if data else []
    return max(prompts, default=default)


def _worst(settings: Mapping[str, Any], *, records: int) -> Course:
    longest, size = settings["max_length"], settings["batch_size"]
    micro = min(settings["micro_batch"] or size, max(1, size // settings["processes"]))
    sides = 2 if settings["objective"] in _PAIRED else 1
    load = Load(micro * longest * sides, micro * longest * sides, micro * sides, longest)
    steps = settings["max_steps"] or (-(-int(records * settings["epochs"]) // size) if records else 0)
    return Course(load, steps, steps * size * longest * sides, steps * size * longest * sides)


def _load(row: Sequence[Sample], *, paired: bool) -> Load:
    rejected = sum(one.rejected for one in row) if paired else 0
    answers = sum(one.answer for one in row)
    longest = max(one.prompt + max(one.answer, one.rejected if paired else 0) for one in row)
    return Load(sum(one.prompt for one in row) + answers + rejected, answers + rejected, len(row) * (1 + paired), longest)


def _sample(messages: Iterable[record.Message], rejected: str | None, vocabulary: int) -> Sample:
    prompt = answer = 0
    for one in messages:
        if one["role"] == "assistant":
            answer += tokens(one["content"], vocabulary)
        else:
            prompt += tokens(one["content"], vocabulary)
    return Sample(prompt, answer, tokens(rejected, vocabulary) if rejected is not None else answer)


def tokens(text: str, vocabulary: int) -> int:
    """A guess, the marks around a message included."""
    whole = len(text.encode("utf-8", "surrogatepass"))
    plain = len(text.encode("ascii", "ignore"))
    return MARKS + round(plain / ASCII + (whole - plain) / (OTHER if vocabulary >= LARGE else OTHER_SMALL))


def _scaled(found: Sequence[Sample], size: int) -> int:
    """How many records a file of `size` bytes holds: counted, or by the share that was read."""
    if len(found) < MOST:
        return len(found)
    read = sum(one.prompt + one.answer for one in found) * ASCII
    return max(len(found), round(len(found) * size / (read + 150 * len(found))))  # JSON around each


def _raw(files: Iterable[Path]) -> Iterator[tuple[list[Any], str | None]]:
    for file in files:
        for line in reading.lines(file, 0, file.stat().st_size):
            parsed = reading.parse(line)
            read = parsed if isinstance(parsed, str) else formats.read(parsed, file.name)
            if not isinstance(read, str):
                yield read.messages, read.rejected
