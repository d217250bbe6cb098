"""Turns a conversation into token ids and says which of them to learn. Knows templates and tokens; nothing of torch.

Loss falls on the assistant's tokens alone, their turn-end included. What those are is found from the template itself:
the prompt for an answer, rendered as serving renders it, must be the beginning of the whole rendering; the answer is what
follows it, up to its turn-end token. The whole rendering is tokenized once and spans are laid over it by character offsets,
so the ids are exactly those that serving sees; that the prompt's own tokens are their beginning is proved for each answer.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from llmkit.engine import overlong
from llmkit.engine.templates import HOW, ChatTemplate, Message, render
from llmkit.errors import DataError, FidelityError, LlmkitError, UsageError

IGNORED = -100
CHUNK = 256  # records rendered before a fast tokenizer is called: enough to keep its threads busy

OnOverlong = Literal["error", "drop", "truncate_left", "split"]
LossOn = Literal["all", "last"]


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens. `labels_mask[i]` is true where token i is learnt; both lists have one length.

    `record`: the id of the record it came from.
    """

    input_ids: list[int]
    labels_mask: list[bool]
    record: str = ""

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
    """What became of a list of records: items in their order, and how many records did not come through whole.

    `overlong`: an answer to learn was lost, all of them under `drop`; `truncated`: cut on the left; `split`: made into several
    items; `forged`: left out, since a message spells a special token. A record that was split may be overlong too.
    """

    items: list[Item]
    overlong: int = 0
    truncated: int = 0
    split: int = 0
    forged: int = 0


class Shown(NamedTuple):
    """One conversation for a person.

    `side`: chosen or rejected, of a pair; `offsets`: the characters of `text` that each token covers, `special`: those of
    special tokens; `forged`: the special token that a message spells, for which training leaves the record out.
    """

    side: str
    text: str
    offsets: list[tuple[int, int]]
    special: list[tuple[int, int]]
    encoded: Encoded
    forged: str


class _Laid(NamedTuple):
    """A rendered conversation. `spans`: from where an answer's prompt ends to where its turn-end token does, in characters."""

    text: str
    spans: list[tuple[int, int]]


class _Tokens(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]


def encode(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate, *, last_only: bool = False) -> Encoded:
    """Token ids of `messages` and the mask over the assistant's answers (`last_only`: over the last one).

    `tokenizer` is a fast one of transformers.

    Raises:
        DataError: no answer to learn, the template refuses the messages or leaves some of them out, or an answer's first
            characters share a token with the prompt.
        UsageError: the template's prompt for an answer is not how its rendering goes on.
        FidelityError: an answer does not end on EOS.
    """
    coder = _Coder(tokenizer, template)
    laid = coder.lay(messages, last_only=last_only)
    return coder.finish(laid, coder.tokenize([laid.text])[0], record="")


def encode_pair(record: Mapping[str, Any], tokenizer: Any, template: ChatTemplate) -> Pair:
    """The record's conversation up to its last answer, and the same with `rejected` in that answer's place.

    Raises: as `encode`, and DataError where both answers are the same.
    """
    chosen, rejected = _sides(record)
    return Pair(
        encode(chosen, tokenizer, template, last_only=True),
        encode(rejected, tokenizer, template, last_only=True),
    )


def encode_all(
    records: Iterable[Record],
    tokenizer: Any,
    template: ChatTemplate,
    *,
    max_length: int,
    on_overlong: OnOverlong = "drop",
    loss_on: LossOn = "all",
) -> Encodings[Encoded]:
    """`encode` for many records; those that forge special tokens are left out and counted.

    What is over `max_length` tokens: `error` raises; `drop` leaves it out; `truncate_left` drops the oldest exchanges, then the
    beginning of the last user message; `split` makes several items, each of whole exchanges behind the system prompt. EOS is
    never cut: an answer that does not fit by itself is lost and counted. `loss_on`: learn all answers, or the last.

    Raises: as `encode`, naming the record.
    """

    def shorten(messages: overlong.Messages, fits: overlong.Fits) -> overlong.Pieces:
        pieces = _SHORTEN[on_overlong](messages, fits)
        return overlong.last_only(pieces, messages) if loss_on == "last" else pieces

    batches = _Batches(_Coder(tokenizer, template), max_length, on_overlong, shorten, last_only=loss_on == "last")
    return batches.collect(records, lambda record: [record["messages"]], lambda parts: parts[0])


def encode_pairs(
    records: Iterable[Record], tokenizer: Any, template: ChatTemplate, *, max_length: int, on_overlong: OnOverlong = "drop"
) -> Encodings[Pair]:
    """`encode_pair` for many records; the longer side counts against `max_length`, and both are cut alike.

    Otherwise as `encode_all`; pairs cannot be split, since only a conversation's last answer has a rejected one.
    """
    if on_overlong == "split":
        raise UsageError(
            "pairs cannot be split: only the last answer has a rejected one", code="LK0409", next="use truncate_left"
        )
    batches = _Batches(_Coder(tokenizer, template), max_length, on_overlong, _SHORTEN[on_overlong], last_only=True)
    return batches.collect(records, _sides, lambda parts: Pair(*parts))


def show(record: Record, tokenizer: Any, template: ChatTemplate) -> list[Shown]:
    """What becomes of one record: all its answers learnt, or, if it has a rejected one, both sides of the pair.

    Raises: as `encode`, naming the record.
    """
    coder = _Coder(tokenizer, template)
    special = coder.forgeries()
    spelled = [match[0] for text in _contents(record) if (match := special.search(text))]
    is_pair = "rejected" in record
    with _named(record):
        sides = _sides(record) if is_pair else [record["messages"]]
        laid = [coder.lay(side, last_only=is_pair) for side in sides]
        tokens = coder.tokenize([one.text for one in laid])
        found = [coder.finish(*both, record=str(record.get("id", ""))) for both in zip(laid, tokens, strict=True)]
    names = ["chosen", "rejected"] if is_pair else [""]
    return [
        Shown(name, one.text, each.offsets, coder.specials(each), encoded, spelled[0] if spelled else "")
        for name, one, each, encoded in zip(names, laid, tokens, found, strict=True)
    ]


def special_texts(tokenizer: Any, template: ChatTemplate) -> re.Pattern[str]:
    """Matches every text that the tokenizer would turn into a special token, or into one that the template writes."""
    tokens = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in tokens if token.special or token.content in template.text} | {template.eos}
    # Longest first: alternatives are tried in order.
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True) if text.strip()))


def _lose(messages: overlong.Messages, fits: overlong.Fits) -> overlong.Pieces:
    return overlong.Pieces([], lost=True)


_SHORTEN: Mapping[OnOverlong, Callable[[overlong.Messages, overlong.Fits], overlong.Pieces]] = {
    "error": _lose,
    "drop": _lose,
    "truncate_left": overlong.truncate_left,
    "split": overlong.split,
}


def _sides(record: Record) -> list[list[Message]]:
    """The chosen and the rejected conversation, each up to its last answer."""
    messages = list(record["messages"])
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        return [[], []]
    return _with_rejected(messages, record["rejected"])


def _with_rejected(messages: list[Message], rejected: str) -> list[list[Message]]:
    if messages[-1]["content"].strip() == rejected.strip():
        raise DataError("chosen and rejected are the same", code="LK0404", next="drop such pairs; `llmkit clean` does")
    return [messages, [*messages[:-1], {"role": "assistant", "content": rejected}]]


class _Coder:
    """A tokenizer and a template, with what both say of special tokens looked up once."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._eos = tokenizer.convert_tokens_to_ids(template.eos)
        self._special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._alone: dict[str, list[int]] = {}

    def forgeries(self) -> re.Pattern[str]:
        return special_texts(self._tokenizer, self._template)

    def specials(self, tokens: _Tokens) -> list[tuple[int, int]]:
        """Where special tokens stand."""
        return [offset for index, offset in zip(tokens.ids, tokens.offsets, strict=True) if index in self._special]

    def lay(self, messages: Sequence[Message], *, last_only: bool) -> _Laid:
        """`messages` as text and the places of the answers to learn. Renders once, and once more an answer."""
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise DataError("the conversation has no assistant message to learn from", code="LK0404")
        full = render(messages, self._tokenizer, self._template)
        _prove_complete(messages, full, self._template)
        spans: list[tuple[int, int]] = []
        for index in turns[-1:] if last_only else turns:
            span = self._answer(messages, index, full)
            if spans and span[0] < spans[-1][1]:
                raise UsageError(
                    f"the chat template {self._template.name} renders one answer inside another", code="LK0318", next=HOW
                )
            spans.append(span)
        return _Laid(full, spans)

    def tokenize(self, texts: list[str]) -> list[_Tokens]:
        """Ids and character offsets of each text, in one call."""
        found = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        return [_Tokens(*one) for one in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def length(self, messages: Sequence[Message]) -> int:
        """In tokens."""
        text = render(messages, self._tokenizer, self._template)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def finish(self, laid: _Laid, tokens: _Tokens, *, record: str) -> Encoded:
        """The mask over the spans, proved: prompts are served as they were trained, and answers end on EOS."""
        learnt = [False] * len(tokens.ids)
        for begin, stop in laid.spans:
            first, after = (bisect_left(tokens.offsets, place, key=_start) for place in (begin, stop))
            self._prove_prompt(laid.text[:begin], tokens, first)
            learnt[first:after] = [True] * (after - first)
        self._prove_ends(learnt, tokens, laid.spans)
        return Encoded(tokens.ids, learnt, record)

    def _answer(self, messages: Sequence[Message], index: int, full: str) -> tuple[int, int]:
        """Where in `full` the answer `messages[index]` begins and where its turn-end token stops, in characters."""
        prompt = render(messages[:index], self._tokenizer, self._template, add_generation_prompt=True)
        if not full.startswith(prompt):
            raise UsageError(
                f"the chat template {self._template.name} prompts for an answer in another way than it renders one",
                code="LK0318",
                next=f"{HOW}, or keep single exchanges" if index + 1 < len(messages) else HOW,
            )
        stop = _turn_stop(full, messages[index]["content"].strip(), self._template.eos, begin=len(prompt))
        if stop is None:
            raise FidelityError(
                f"the chat template {self._template.name} does not end an answer with {self._template.eos}",
                code="LK0318",
                next=HOW,
            )
        return len(prompt), stop  # what a template writes after it (Gemma's newline) is never generated

    def _prove_prompt(self, prompt: str, tokens: _Tokens, first: int) -> None:
        """The prompt's own tokens are the first ones of `tokens`, of which `first` begin before the answer.

        A special token parts a text wherever it stands, so only what follows the last one is tokenized again.
        """
        anchor = next((index for index in range(first - 1, -1, -1) if self._parts_text(prompt, tokens, index)), 0)
        tail = prompt[tokens.offsets[anchor][0] :] if first else prompt
        if self._ids(tail) != tokens.ids[anchor:first]:
            raise DataError(
                "an answer's first characters share a token with the prompt: serving would not see the prompt trained on",
                code="LK0318",
                next="take white space off the beginning of answers (`llmkit clean` does), or use a template that does",
            )

    def _parts_text(self, prompt: str, tokens: _Tokens, index: int) -> bool:
        # Spelled out, too: an unknown character's token is special, and parts nothing.
        content = self._special.get(tokens.ids[index])
        return content is not None and prompt[slice(*tokens.offsets[index])].strip() == content.strip()

    def _ids(self, text: str) -> list[int]:
        found = self._alone.get(text)
        if found is None:
            found = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(self._alone) < CHUNK:  # most templates have a single one, some have one for each question
                self._alone[text] = found
        return found

    def _prove_ends(self, learnt: list[bool], tokens: _Tokens, spans: Sequence[tuple[int, int]]) -> None:
        """Every run of tokens to learn ends on the turn-end token, and there is one for each answer."""
        kept = zip(tokens.ids, learnt, [*learnt[1:], False], strict=True)
        learnt_ids = [(token, not goes_on) for token, is_learnt, goes_on in kept if is_learnt]
        runs_end = all(token == self._eos for token, is_last in learnt_ids if is_last)
        if not runs_end or sum(token == self._eos for token, _ in learnt_ids) < len(spans):
            raise FidelityError(
                "an answer's turn-end token is not among the tokens to learn: the model would never stop", code="LK0318"
            )


class _Batches:
    """Encodes records chunk by chunk and keeps the accounts."""

    def __init__(
        self,
        coder: _Coder,
        max_length: int,
        on_overlong: OnOverlong,
        shorten: Callable[[overlong.Messages, overlong.Fits], overlong.Pieces],
        *,
        last_only: bool,
    ) -> None:
        self._coder, self._max_length, self._last_only = coder, max_length, last_only
        self._refuses, self._shorten = on_overlong == "error", shorten
        self._counts = {"overlong": 0, "truncated": 0, "split": 0, "forged": 0}

    def collect(
        self,
        records: Iterable[Record],
        sides: Callable[[Record], list[list[Message]]],
        join: Callable[[list[Encoded]], Item],
    ) -> Encodings[Item]:
        """`sides`: the conversations a record is made of; `join`: what their encodings make."""
        items: list[Item] = []
        special, source = self._coder.forgeries(), iter(records)
        while chunk := list(islice(source, CHUNK)):
            # A message that spells <end_of_turn> would become the real token: it teaches to stop, or to speak, out of turn.
            honest = [record for record in chunk if not any(special.search(text) for text in _contents(record))]
            self._counts["forged"] += len(chunk) - len(honest)
            items += map(join, self._chunk(honest, sides))
        return Encodings(items, **self._counts)

    def _chunk(self, records: Sequence[Record], sides: Callable[[Record], list[list[Message]]]) -> list[list[Encoded]]:
        laid: list[list[_Laid]] = []
        for record in records:
            with _named(record):
                laid.append([self._coder.lay(side, last_only=self._last_only) for side in sides(record)])
        tokens = iter(self._coder.tokenize([one.text for each in laid for one in each]) if laid else [])
        found: list[list[Encoded]] = []
        for record, each in zip(records, laid, strict=True):
            own = [next(tokens) for _ in each]
            with _named(record):
                longest = max(len(one.ids) for one in own)
                if longest <= self._max_length:
                    name = str(record.get("id", ""))
                    found.append([self._coder.finish(*both, record=name) for both in zip(each, own, strict=True)])
                else:
                    found += self._shortened(record, sides, longest)
        return found

    def _shortened(self, record: Record, sides: Callable[[Record], list[list[Message]]], longest: int) -> list[list[Encoded]]:
        """What is left of a record that is too long, and its place in the accounts."""
        if self._refuses:
            raise DataError(
                f"{longest} tokens are over max_length {self._max_length}",
                code="LK0403",
                next="raise finetune.max_length, or set finetune.on_overlong to drop or truncate_left",
            )

        def versions(messages: list[Message]) -> list[list[Message]]:
            return sides({**record, "messages": messages})

        def fits(messages: list[Message]) -> bool:
            return all(self._coder.length(side) <= self._max_length for side in versions(messages))

        pieces = self._shorten(sides(record)[0], fits)
        self._counts["overlong"] += pieces.lost
        self._counts["split"] += len(pieces.items) > 1
        self._counts["truncated"] += len(pieces.items) == 1 and not pieces.lost
        return [[self._encoded(side, record) for side in versions(piece)] for piece in pieces.items]

    def _encoded(self, messages: list[Message], record: Record) -> Encoded:
        laid = self._coder.lay(messages, last_only=self._last_only)
        return self._coder.finish(laid, self._coder.tokenize([laid.text])[0], record=str(record.get("id", "")))


def _start(offset: tuple[int, int]) -> int:
    return offset[0]


def _turn_stop(full: str, content: str, eos: str, *, begin: int) -> int | None:
    """Where the turn-end token after `content` stops; a template may write other text, or the same, before the content."""
    place = full.find(content, begin)
    while place >= 0:
        end = place + len(content)
        stop = full.find(eos, end)
        if stop < 0:
            return None
        if not full[end:stop].strip():
            return stop + len(eos)
        place = full.find(content, place + 1)
    return None


def _prove_complete(messages: Sequence[Message], full: str, template: ChatTemplate) -> None:
    """Every message stands in the rendering, in order."""
    position = 0
    for message in messages:
        content = message["content"].strip()
        found = full.find(content, position)
        if found < 0:
            raise DataError(
                f"the chat template {template.name} leaves out or rewrites a {message['role']} message",
                code="LK0317",
                next="set finetune.template to one that keeps it, or take such messages out of the data",
            )
        position = found + len(content)


def _contents(record: Record) -> list[str]:
    return [message["content"] for message in record["messages"]] + [record.get("rejected", "")]


@contextmanager
def _named(record: Record) -> Iterator[None]:
    """Errors say which record they are about."""
    try:
        yield
    except LlmkitError as error:
        raise type(error)(error.what, code=error.code, where=f"record {record.get('id', '?')}", next=error.next) from error
