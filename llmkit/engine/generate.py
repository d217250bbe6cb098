"""Answers many conversations with one model, in batches. Knows generation; nothing of metrics or files.

Greedy, left-padded, longest prompts first within a batch of equals, so that padding is small; the order of the answers
is the order of the prompts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmkit import progress
from llmkit.engine.templates import ChatTemplate, Message, render


@dataclass(frozen=True)
class Answer:
    """One generated text, special tokens removed. `tokens`: how many were generated; `stopped`: ended on EOS by itself."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Answers:
    """All answers, in the prompts' order, and the seconds that generating them took."""

    items: list[Answer]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self.items) / self.seconds if self.seconds else 0.0


def answer(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    template: ChatTemplate,
    max_new_tokens: int,
    batch_size: int = 16,
    bar: progress.Bar | None = None,
) -> Answers:
    """Greedy answers to `conversations`, each of which ends on a user's message.

    Raises:
        DataError: the template refuses a conversation.
    """
    texts = [render(messages, tokenizer, template, add_generation_prompt=True) for messages in conversations]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found: list[Answer | None] = [None] * len(prompts)
    stops = _stops(model, tokenizer, template)
    started = time.perf_counter()
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        for index, ids in zip(chunk, _batch(model, [prompts[i] for i in chunk], stops, max_new_tokens), strict=True):
            stopped = bool(ids) and ids[-1] in stops
            found[index] = Answer(tokenizer.decode(ids, skip_special_tokens=True), len(ids), stopped)
        if bar:
            bar.advance(len(chunk))
    return Answers([one for one in found if one is not None], time.perf_counter() - started)


def _stops(model: Any, tokenizer: Any, template: ChatTemplate) -> list[int]:
    known = model.generation_config.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or [])
    return list(dict.fromkeys([*ids, tokenizer.convert_tokens_to_ids(template.eos)]))


def _batch(model: Any, prompts: Sequence[Sequence[int]], stops: list[int], max_new_tokens: int) -> list[list[int]]:
    """The new ids of each prompt, its EOS included, what follows it cut."""
    width = max(len(prompt) for prompt in prompts)
    pad = stops[0]
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            # Published configs set these; under greedy search they would only warn.
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=stops,
            pad_token_id=pad,
        )
    return [_cut(row, stops) for row in out[:, width:].tolist()]


def _cut(ids: list[int], stops: list[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return ids if end is None else ids[: end + 1]
