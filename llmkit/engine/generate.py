"""Answers many conversations with one model, in batches. Knows templates, batches and the store; not how a token is chosen.

Prompts are sorted by length, the longest first, and cut into batches of one size: the first batch needs the most memory, and
padding is small. The batches follow from the list of prompts alone, a finished one is stored at once and never made again, and
a half-finished one is made again whole: a run that was killed and goes on says what an uninterrupted one says.

In fp32 the answers are the same for every batch size. In bf16 and NF4 they are not: another number of rows sums in another
order, and a near-tie between two tokens falls the other way. In INT8 a row even depends on the others' values: LLM.int8 sets
columns apart where any row has an outlier (Dettmers et al. 2022, arXiv:2208.07339).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llmkit import progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.answers import keys as name_all
from llmkit.engine import loading, room
from llmkit.engine.decode import decode
from llmkit.engine.templates import ChatTemplate, Message, render
from llmkit.errors import MachineError, UsageError


@dataclass(frozen=True)
class Answers:
    """All answers, in the prompts' order. `batch_size`: prompts at once, in the end; 0 where none could be asked."""

    items: list[Answer]
    batch_size: int

    @property
    def tokens_per_second(self) -> float:
        seconds = sum(one.seconds for one in self.items)
        return sum(one.tokens for one in self.items) / seconds if seconds else 0.0


def answer(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    template: ChatTemplate,
    decoding: Decoding,
    batch_size: int | None = None,
    store: Store | None = None,
    bar: progress.Bar | None = None,
    keys: Sequence[str] | None = None,
) -> Answers:
    """Answers to `conversations`, each of which ends on a user's message.

    A prompt that leaves the model's context no room for the answer gets an answer with a `failure`.

    Args:
        batch_size: prompts at once; None: what fits in memory. Halved when memory runs out, and kept in the store.
        store: finished batches go into it; what it holds is not asked again.
        keys: of the answers in the store, and what sampling is seeded by beside `decoding.seed`; None: `answers.keys`.

    Raises:
        DataError: the template refuses a conversation.
        UsageError: beam search with sampling.
        MachineError: memory does not suffice for one prompt.
    """
    check(decoding)
    texts = [render(messages, tokenizer, template, add_generation_prompt=True) for messages in conversations]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    job = _Job(model, tokenizer, prompts, list(keys or name_all(conversations)), decoding, stops(model, tokenizer, template))
    found = {index: failure for index in range(len(prompts)) if (failure := job.refusal(index))}
    if bar and found:
        bar.advance(len(found))
    order = sorted((index for index in range(len(prompts)) if index not in found), key=lambda index: -len(prompts[index]))
    sizes = _Sizes(batch_size, store)
    size = sizes.first(job, order) if order else 0
    first = 0
    while first < len(order):
        size, made = _made(job, order[first:], size, store, sizes)
        found |= made
        first += len(made)
        if bar:
            bar.advance(len(made))
    return Answers([found[index] for index in range(len(prompts))], min(size, len(order)))


def check(decoding: Decoding) -> None:
    """Refuse beam search with sampling.

    Raises:
        UsageError: both are asked for.
    """
    if decoding.beams > 1 and decoding.temperature:
        raise UsageError(
            "beam search and sampling exclude each other", code="LK0712", next="set beams to 1 or temperature to 0"
        )


def stops(model: Any, tokenizer: Any, template: ChatTemplate) -> list[int]:
    """The tokens that end an answer: the model's own, and the one its template ends a turn with."""
    known = model.generation_config.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or [])
    return list(dict.fromkeys([*ids, tokenizer.convert_tokens_to_ids(template.eos)]))


def context(model: Any) -> int | None:
    """Tokens that the model can attend to, None where its config does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def no_room(prompt: int, decoding: Decoding, limit: int | None) -> Answer | None:
    """The answer to a prompt of so many tokens that it leaves none for the answer's; None if it fits."""
    if limit is None or prompt + decoding.max_new_tokens <= limit:
        return None
    why = f"{prompt} tokens of prompt and {decoding.max_new_tokens} of answer do not fit the model's context of {limit}"
    return Answer("", 0, stopped=False, seconds=0.0, failure=why)


def seed(decoding: Decoding, name: str) -> tuple[int, int]:
    """What the draws for the answer called `name` depend on."""
    return decoding.seed, int(sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16], 16)


@dataclass(frozen=True)
class _Job:
    model: Any
    tokenizer: Any
    prompts: Sequence[Sequence[int]]
    keys: Sequence[str]
    decoding: Decoding
    stops: Sequence[int]

    def refusal(self, index: int) -> Answer | None:
        return no_room(len(self.prompts[index]), self.decoding, context(self.model))

    def run(self, batch: Sequence[int]) -> Iterator[Answer]:
        started = time.perf_counter()
        rows = decode(
            self.model,
            [self.prompts[index] for index in batch],
            decoding=self.decoding,
            stops=self.stops,
            seeds=[seed(self.decoding, self.keys[index]) for index in batch],
        )
        share = (time.perf_counter() - started) / len(batch)
        for one in rows:
            text = self.tokenizer.decode(one.ids, skip_special_tokens=True)
            yield Answer(text, len(one.ids), one.ids[-1] in self.stops, share, one.log_probability)


@dataclass(frozen=True)
class _Sizes:
    """Prompts at once: what was asked for, None for what fits, and what came of it, in the store."""

    asked: int | None
    store: Store | None

    def first(self, job: _Job, order: Sequence[int]) -> int:
        """As the store has it, for a run that goes on makes the batches that it would have made."""
        noted = self.store.noted(self._name) if self.store is not None else None
        if isinstance(noted, int) and noted > 0:
            return noted
        longest, decoding = len(job.prompts[order[0]]), job.decoding
        size = self.asked or room.rows(job.model, prompt=longest, new=decoding.max_new_tokens, beams=decoding.beams)
        return self.keep(size)

    def keep(self, size: int) -> int:
        if self.store is not None:
            self.store.note(self._name, size)
        return size

    @property
    def _name(self) -> str:
        return f"batch size, asked for {self.asked or 'what fits'}"


def _made(job: _Job, order: Sequence[int], size: int, store: Store | None, sizes: _Sizes) -> tuple[int, Mapping[int, Answer]]:
    """The answers to the first batch of `order`, from the store or made now, and the size that it, and the next, may have."""
    while True:
        batch = order[:size]
        kept = {index: one for index in batch if store is not None and (one := store.get(job.keys[index]))}
        if len(kept) == len(batch):
            return size, kept
        try:
            made = dict(zip(batch, job.run(batch), strict=True))
        except (MemoryError, RuntimeError) as error:
            if not room.out_of_memory(error):
                raise
            smaller = _smaller(size)
        else:
            if store is not None:
                store.put({job.keys[index]: one for index, one in made.items()})
            return size, made
        # Out of the handler: the error's frames hold what the batch had allocated.
        loading.release()
        progress.note(f"out of memory; on with {smaller} prompts at once")
        size = sizes.keep(smaller)


def _smaller(size: int) -> int:
    """The largest half or less that divides it: the batches made before are then whole batches of the new size."""
    if size == 1:
        raise MachineError(
            "out of memory with one prompt at a time", code="LK0901", next="lower eval.max_new_tokens, or use a smaller model"
        )
    return next(part for part in range(size // 2, 0, -1) if size % part == 0)
