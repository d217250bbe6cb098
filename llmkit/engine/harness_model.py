"""A model as lm-evaluation-harness asks it: log-likelihoods of continuations, of whole texts, and generated text.

Knows models, tokens and the harness's interface; nothing of tasks. Imports the harness, which takes a second.

What is asked more than once is computed once: the options A to D of a question differ in their last token alone. The output
layer is applied at scored positions only, some rows at a time: a 262k vocabulary's logits are never there for a whole batch.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import StoppingCriteria, StoppingCriteriaList

from llmkit import progress
from llmkit.engine.templates import ChatTemplate, Message, render
from llmkit.errors import UsageError

LOGITS = 2**25  # alive at once: 128 MiB in fp32
BATCH_TOKENS = 2**14  # in a forward pass, padding included
# What a task may set of the sampling. `generate` also takes names of code to fetch and run.
SAMPLING = ("do_sample", "temperature", "top_p", "num_beams")
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Score:
    """Of a continuation: its log-likelihood in nats, and whether greedy decoding would have said it."""

    log_likelihood: float
    greedy: bool


class HarnessModel(LM):
    """A causal language model of transformers, in whatever precision, behind the harness's interface.

    Texts come rendered by `template`, special tokens included, and are tokenized as they are.
    """

    def __init__(self, model: Any, tokenizer: Any, *, template: ChatTemplate, batch_size: int) -> None:
        super().__init__()
        self._model, self._tokenizer, self._template, self._batch_size = model, tokenizer, template, batch_size
        self._device = model.device
        self._max_length = resolve_max_length(model.config, tokenizer)
        bos = tokenizer.bos_token_id
        # What stands before a text that nothing precedes.
        self._prefix = int(tokenizer.eos_token_id if bos is None else bos)
        eos = model.generation_config.eos_token_id
        known = [eos] if isinstance(eos, int) else list(eos or [])
        self._stops = list(dict.fromkeys([*known, tokenizer.convert_tokens_to_ids(template.eos)]))

    @property
    def tokenizer_name(self) -> str:
        return sha256(self._template.text.encode()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self._template.text

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """Messages as text that the answer follows; without the prompt, the last message is the answer's beginning.

        Raises:
            DataError: the template refuses the messages.
        """
        if add_generation_prompt:
            return render(chat_history, self._tokenizer, self._template, add_generation_prompt=True)
        *before, begun = chat_history
        return render(before, self._tokenizer, self._template, add_generation_prompt=True) + begun["content"]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the continuation's log-likelihood in nats, and whether it is the greedy one."""
        scores = self._scores([self._pair(*request.args) for request in requests])
        return [(score.log_likelihood, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each whole text the log-likelihood in nats, in windows that do not overlap in what they predict."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self._encode(request.args[0]), prefix_token=self._prefix, max_seq_len=self._max_length, context_len=1
            )
            found = [make_disjoint_window(window) for window in windows]
            pairs += found
            owners += [index] * len(found)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._scores(pairs), strict=True):
            totals[owner] += score.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model answers to each context, up to the first of the task's stop texts.

        Raises:
            UsageError: the task sets what is not a plain sampling parameter.
        """
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        with progress.track("answering benchmarks", total=len(requests)) as bar:
            for group in groups.values():
                asked = _Asked.of(requests[group[0]].args[1], most=self._max_length // 2)
                # The beginning of what is too long is dropped, as the harness does.
                prompts = [self._encode(requests[index].args[0])[-(self._max_length - asked.tokens) :] for index in group]
                for chunk in _batches([len(prompt) + asked.tokens for prompt in prompts], self._batch_size):
                    texts = self._generated([prompts[place] for place in chunk], asked)
                    for place, text in zip(chunk, texts, strict=True):
                        answers[group[place]] = text
                    bar.advance(len(chunk))
        return answers

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pair(self, context: str, continuation: str) -> Pair:
        """Both as tokens, of which none is split by the boundary: where it falls into a token, that one is scored whole."""
        # White space before an answer belongs to it: the harness's rule.
        before = self._encode(context.rstrip())
        whole = self._encode(context + continuation)
        if not continuation or not whole:
            return [self._prefix], []
        shared = next((place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        shared = min(shared, len(whole) - 1)
        if shared == 0 and whole[0] != self._prefix:
            return [self._prefix], whole
        return whole[: max(shared, 1)], whole[max(shared, 1) :]

    def _scores(self, pairs: Sequence[Pair]) -> list[Score]:
        """In the pairs' order, whatever batches they were computed in."""
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (before, after) in enumerate(pairs):
            if len(after) > self._max_length:
                raise UsageError(
                    f"a benchmark's answer of {len(after):,} tokens is beyond the model's {self._max_length:,}", code="LK0715"
                )
            if after:
                inputs.setdefault(tuple((before + after)[-(self._max_length + 1) :][:-1]), []).append(index)
        rows = list(inputs)
        found = [Score(0.0, True)] * len(pairs)
        with progress.track("scoring benchmarks", total=len(pairs)) as bar, torch.inference_mode():
            for chunk in _batches([len(row) for row in rows], self._batch_size):
                members = [(row, index) for row, place in enumerate(chunk) for index in inputs[rows[place]]]
                wanted = [(row, pairs[index][1]) for row, index in members]
                for (_, index), score in zip(members, self._batch([rows[place] for place in chunk], wanted), strict=True):
                    found[index] = score
                bar.advance(len(members))
        return found

    def _batch(self, rows: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, list[int]]]) -> list[Score]:
        """The scores of continuations, each with the row that it is the end of; its last token is not part of the row."""
        ids, seen = _padded(rows, self._device, left=False)
        outputs = self._model.base_model(input_ids=ids, attention_mask=seen, use_cache=False)
        # Token i is predicted from position i - 1. What several continuations ask for is computed once.
        asked = [
            (row, len(rows[row]) - len(after) + place, token, owner)
            for owner, (row, after) in enumerate(wanted)
            for place, token in enumerate(after)
        ]
        places = sorted({(row, position) for row, position, _, _ in asked})
        number = {place: index for index, place in enumerate(places)}
        states = outputs.last_hidden_state[tuple(torch.tensor(places, device=self._device).T)] if places else None
        totals, greedy = [0.0] * len(wanted), [True] * len(wanted)
        asked.sort()
        size = max(1, LOGITS // self._model.get_output_embeddings().weight.shape[0])
        for first in range(0, len(places), size):
            assert states is not None
            part = [one for one in asked if first <= number[one[:2]] < first + size]
            log_probs = _logits(self._model, outputs, states[first : first + size]).log_softmax(-1)
            where = torch.tensor([number[one[:2]] - first for one in part], device=self._device)
            tokens = torch.tensor([one[2] for one in part], device=self._device)
            likeliest = (log_probs.argmax(-1)[where] == tokens).tolist()
            for (*_, owner), value, first_choice in zip(part, log_probs[where, tokens].tolist(), likeliest, strict=True):
                totals[owner] += value
                greedy[owner] &= first_choice
        return [Score(*both) for both in zip(totals, greedy, strict=True)]

    def _generated(self, prompts: Sequence[list[int]], asked: "_Asked") -> list[str]:
        ids, seen = _padded(prompts, self._device, left=True)
        # A stop text may be a special token, which decoded text does not show.
        added = self._tokenizer.get_added_vocab()
        stops = [*self._stops, *(added[text] for text in asked.until if text in added)]
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=asked.tokens,
                # Published configs set these; the task alone decides.
                **{"temperature": None, "top_p": None, "top_k": None, "num_beams": 1, **asked.sampling},
                eos_token_id=stops,
                pad_token_id=stops[0],
                stopping_criteria=StoppingCriteriaList([_Said(asked.until, self._tokenizer, ids.shape[1])]),
            )
        return [asked.cut(self._tokenizer.decode(row, skip_special_tokens=True)) for row in out[:, ids.shape[1] :].tolist()]


@dataclass(frozen=True)
class _Asked:
    """How a task wants text generated: at most so many tokens, up to any of the texts, with these parameters."""

    tokens: int
    until: list[str]
    sampling: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, most: int) -> "_Asked":
        plain = normalize_gen_kwargs(dict(settings))
        tokens, until = plain.pop("max_gen_toks"), plain.pop("until")
        unknown = next((key for key in plain if key not in SAMPLING), None)
        if unknown is not None:
            raise UsageError(
                f"a benchmark's generation_kwargs cannot hold {unknown!r}",
                code="LK0714",
                next=f"it takes {', '.join(SAMPLING)}",
            )
        if not plain["do_sample"]:
            plain |= {"temperature": None, "top_p": None}
        return cls(max(1, min(tokens, most)), [text for text in until if isinstance(text, str) and text], plain)

    def cut(self, text: str) -> str:
        for stop in self.until:
            text = text.split(stop, maxsplit=1)[0]
        return text


class _Said(StoppingCriteria):
    """Stops a row whose new text holds one of the texts; what it has said before is not read again."""

    def __init__(self, until: Sequence[str], tokenizer: Any, width: int) -> None:
        self._until, self._tokenizer, self._width = until, tokenizer, width
        # A token is a byte at least; one more where the text begins inside a token.
        self._reach = max((len(text.encode()) for text in until), default=0) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = (
            input_ids[:, max(self._width, input_ids.shape[1] - self._reach) :].tolist()
            if self._until
            else input_ids.shape[0] * [[]]
        )
        texts = [self._tokenizer.decode(row) for row in rows]
        return torch.tensor([any(stop in text for stop in self._until) for text in texts], device=input_ids.device)


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places in `lengths`, longest first, in batches of at most so many and of at most BATCH_TOKENS once padded."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [rows, longest]. What is filled up on the right leaves what stands before it as it is."""
    width = max(len(row) for row in rows)
    gaps = [[0] * (width - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
    seen = [[*gap, *[1] * len(row)] if left else [*[1] * len(row), *gap] for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)


def _logits(model: Any, outputs: Any, states: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, hidden] as fp32 logits [rows, vocabulary].

    By the model's own forward, its base answering with `states`, so that whatever it does to its logits is done.
    """
    outputs.last_hidden_state = states[None]
    with _answering(model.base_model, lambda *_, **__: outputs):
        nothing = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
        return model(input_ids=nothing, use_cache=False).logits[0].float()


@contextmanager
def _answering(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` in the place of the module's own."""
    own = vars(module).get("forward")  # accelerate puts one there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
