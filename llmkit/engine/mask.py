"""Turns a conversation into token ids and says which of them to learn. Knows templates and tokens; nothing of torch.

Loss falls on the assistant's tokens alone, their turn-end included. What those are is found from the template itself:
rendering the conversation up to a turn, with the prompt for an answer, must give the beginning of the whole rendering;
the answer is what follows it, up to its turn-end token. The whole rendering is tokenized once and spans are laid over it
by character offsets, so the ids are exactly those that serving sees.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llmkit.engine.templates import HOW, ChatTemplate, Message, render
from llmkit.errors import DataError, FidelityError, LlmkitError, UsageError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens. `labels_mask[i]` is true where token i is learnt; both lists have one length."""

    input_ids: list[int]
    labels_mask: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids where they are learnt, `IGNORED` elsewhere; not shifted."""
        return [token if learnt else IGNORED for token, learnt in zip(self.input_ids, self.labels_mask, strict=True)]


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last answer, which alone is learnt."""

    chosen: Encoded
    rejected: Encoded


Item = TypeVar("Item", Encoded, Pair)
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Encodings(Generic[Item]):
    """What became of a list of records: items in their order, and how many were left out and why."""

    items: list[Item]
    overlong: int
    forged: int


def encode(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate, *, last_only: bool = False) -> Encoded:
    """Token ids of `messages` and the mask over the assistant's answers (`last_only`: over the last one).

    `tokenizer` is a fast one of transformers.

    Raises:
        DataError: no answer to learn, or the template refuses the messages or leaves some of them out.
        FidelityError: the template renders a turn differently once more turns follow, or an answer does not end on EOS.
    """
    full = render(messages, tokenizer, template)
    _prove_complete(messages, full, template)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError("the conversation has no assistant message to learn from")
    spans = [_answer(messages, index, full, tokenizer, template) for index in (turns[-1:] if last_only else turns)]
    tokens = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    learnt = [
        any(begin <= start and end <= stop and start < stop for begin, stop in spans) for start, end in tokens["offset_mapping"]
    ]
    encoded = Encoded(list(tokens["input_ids"]), learnt)
    _prove_ends(encoded, tokens["offset_mapping"], spans, tokenizer.convert_tokens_to_ids(template.eos))
    return encoded


def encode_pair(record: Mapping[str, Any], tokenizer: Any, template: ChatTemplate) -> Pair:
    """The record's conversation up to its last answer, and the same with `rejected` in that answer's place.

    Raises: as `encode`.
    """
    messages = list(record["messages"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    rejected = [*messages[:-1], {"role": "assistant", "content": record["rejected"]}] if messages else []
    return Pair(
        encode(messages, tokenizer, template, last_only=True),
        encode(rejected, tokenizer, template, last_only=True),
    )


def encode_all(records: Iterable[Record], tokenizer: Any, template: ChatTemplate, *, max_length: int) -> Encodings[Encoded]:
    """`encode` for many records. Left out and counted: those over `max_length` tokens, and those that forge special tokens.

    Raises: as `encode`, naming the record.
    """

    def one(record: Record) -> tuple[Encoded, int]:
        encoded = encode(record["messages"], tokenizer, template)
        return encoded, len(encoded.input_ids)

    return _collect(records, one, special_texts(tokenizer, template), max_length=max_length)


def encode_pairs(records: Iterable[Record], tokenizer: Any, template: ChatTemplate, *, max_length: int) -> Encodings[Pair]:
    """`encode_pair` for many records; the longer side counts against `max_length`. Otherwise as `encode_all`."""

    def one(record: Record) -> tuple[Pair, int]:
        pair = encode_pair(record, tokenizer, template)
        return pair, max(len(pair.chosen.input_ids), len(pair.rejected.input_ids))

    return _collect(records, one, special_texts(tokenizer, template), max_length=max_length)


def special_texts(tokenizer: Any, template: ChatTemplate) -> re.Pattern[str]:
    """Matches every text that the tokenizer would turn into a special token, or into one that the template writes."""
    tokens = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in tokens if token.special or token.content in template.text} | {template.eos}
    # Longest first: alternatives are tried in order.
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True) if text.strip()))


def _collect(
    records: Iterable[Record], one: Callable[[Record], tuple[Item, int]], special: re.Pattern[str], *, max_length: int
) -> Encodings[Item]:
    items, overlong, forged = [], 0, 0
    for record in records:
        # A message that spells <end_of_turn> would become the real token: it teaches to stop, or to speak, out of turn.
        if any(special.search(text) for text in _contents(record)):
            forged += 1
            continue
        try:
            item, length = one(record)
        except LlmkitError as error:
            raise type(error)(error.what, where=f"record {record.get('id', '?')}", next=error.next) from error
        if length > max_length:
            overlong += 1
        else:
            items.append(item)
    return Encodings(items, overlong, forged)


def _contents(record: Record) -> list[str]:
    return [message["content"] for message in record["messages"]] + [record.get("rejected", "")]


def _prove_complete(messages: Sequence[Message], full: str, template: ChatTemplate) -> None:
    """Every message stands in the rendering, in order."""
    position = 0
    for message in messages:
        content = message["content"].strip()
        found = full.find(content, position)
        if found < 0:
            raise DataError(
                f"the chat template {template.name} leaves out or rewrites a {message['role']} message",
                next="set finetune.template to one that keeps it, or take such messages out of the data",
            )
        position = found + len(content)


def _answer(messages: Sequence[Message], index: int, full: str, tokenizer: Any, template: ChatTemplate) -> tuple[int, int]:
    """Where in `full` the answer `messages[index]` begins and where its turn-end token stops, in characters."""
    prompt = render(messages[:index], tokenizer, template, add_generation_prompt=True)
    upto = render(messages[: index + 1], tokenizer, template)
    if not upto.startswith(prompt):
        raise UsageError(
            f"the chat template {template.name} prompts for an answer in another way than it renders one", next=HOW
        )
    end = upto.rfind(template.eos, len(prompt))
    if end < 0:
        raise FidelityError(f"the chat template {template.name} does not end an answer with {template.eos}", next=HOW)
    stop = end + len(template.eos)  # what a template writes after it (Gemma's newline) is never generated
    if full[:stop] != upto[:stop]:
        raise UsageError(
            f"the chat template {template.name} renders a turn in another way once more turns follow",
            next=f"{HOW}, or keep single exchanges",
        )
    return len(prompt), stop


def _prove_ends(encoded: Encoded, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], eos_id: int) -> None:
    """Each answer's last token to learn is the turn-end token."""
    tokens = zip(encoded.input_ids, encoded.labels_mask, offsets, strict=True)
    ends = {end for token, learnt, (_, end) in tokens if learnt and token == eos_id}
    for _, stop in spans:
        if stop not in ends:
            raise FidelityError("an answer's turn-end token is not among the tokens to learn: the model would never stop")
