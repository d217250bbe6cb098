"""Answers that come and go at their own pace, computed together: transformers' continuous batching. Knows models and token
ids; nothing of texts, templates or HTTP.

A request joins and leaves between two steps (Yu et al. 2022, Orca); keys and values lie in pages (Kwon et al. 2023,
arXiv:2309.06180). Which token comes next is chosen here, as `decode` chooses it, with draws of the request's own: in fp32 an
answer depends neither on what else is computed nor on when it was asked. bitsandbytes weights round with the batch.

Written after transformers 5.20 to 5.23, whose manager has one way of sampling and one seed for all requests.
"""

import itertools
import math
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cb_logits_processors as processors
from transformers.generation.logits_process import LogitsProcessorList

from llmkit.engine import decode, loading, room
from llmkit.engine.requests import Choice, Request
from llmkit.errors import MachineError, UsageError

_PAGE = 32  # tokens; small ones waste little of a short answer's last page
_SPARE_PAGES = 3  # a request's: a window that moves over page borders holds more than its length
_STEP_TOKENS = 256  # of prompts and answers in one step: how long a long prompt holds up the others
_LISTEN_SECONDS = 0.2
_STOP_SECONDS = 60.0
LONGEST = 4096  # tokens of context where nobody asks for more: memory is set aside for all of it
SHORTEST = 256


class Engine:
    """A model that answers up to `parallel` prompts at once, each with its answer in `context` tokens; the rest wait.

    The memory for all of that is taken at once.

    Raises:
        MachineError: transformers cannot batch this model.
    """

    def __init__(self, model: Any, *, stops: Sequence[int], context: int, parallel: int) -> None:
        self._stops = list(stops)
        self._names = itertools.count()
        self._lock = threading.RLock()  # the garbage collector may close a request, anywhere
        self._waiting: dict[str, Request] = {}
        self._dead: MachineError | None = None
        try:
            self._manager = model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=self._stops or [-1]),
                continuous_batching_config=_settings(context, parallel),
            )
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise MachineError(f"transformers does not batch this model: {_first_line(error)}", code="LK0804") from error
        self._manager.logit_processor = _processors()
        self._manager.start()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._dead is None

    def ask(self, prompt: Sequence[int], choice: Choice) -> Request:
        """Begin an answer. Raises MachineError once the model has failed."""
        with self._lock:
            if self._dead:
                raise self._dead
            name = str(next(self._names))
            self._waiting[name] = request = Request(partial(self._forget, name))
            self._manager.add_request(
                list(prompt),
                name,
                max_new_tokens=choice.decoding.max_new_tokens,
                streaming=True,
                eos_token_id=self._stops,
                draws=_Draws(choice, len(prompt)),
            )
        return request

    def close(self) -> None:
        """End everything; answers under way end with a MachineError."""
        self._end(MachineError("the model was shut down", code="LK0805"))
        self._manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
        self._listener.join(_STOP_SECONDS)
        loading.release()

    def _forget(self, name: str) -> None:
        with self._lock:
            if self._waiting.pop(name, None) and not self._dead:
                self._manager.cancel_request(name)

    def _listen(self) -> None:
        """Hand each result to its request; when the manager has died, tell all of them."""
        try:
            while self._dead is None:
                running = self._manager.is_running()
                if (found := self._manager.get_result(timeout=_LISTEN_SECONDS)) is not None:
                    self._hand(found)
                elif not running:
                    self._end(_broken(self._manager.background_thread_status.fatal_error))
        finally:  # whatever ended this thread, nobody may wait for it
            self._end(MachineError("the model's answers are no longer listened to", code="LK0805"))

    def _hand(self, found: Any) -> None:
        done = found.is_finished()
        with self._lock:
            request = self._waiting.pop(found.request_id, None) if done else self._waiting.get(found.request_id)
        if request is None:  # closed meanwhile
            return
        if found.error:
            request.fail(_broken(found.error))
            return
        said = found.generated_tokens
        ends = "stop" if said and said[-1] in self._stops else "length"
        request.hear_all(said, finish=ends if done else "")

    def _end(self, error: MachineError) -> None:
        with self._lock:
            self._dead = self._dead or error
            left, self._waiting = list(self._waiting.values()), {}
        for request in left:
            request.fail(self._dead)


def fitting_context(model: Any, *, asked: int | None, parallel: int) -> int:
    """Tokens that each of `parallel` answers and its prompt may take: what is asked for, or what the memory that is free holds.

    Raises:
        UsageError: more than the model was trained on, or than fits in memory.
    """
    size = allowed_context(model.config, asked=asked)
    fits = int(loading.free_memory() * room.SHARE) // (parallel * _token_bytes(model))
    if asked and asked > fits:
        raise UsageError(
            f"{parallel} answers at once, each with a context of {asked} tokens, do not fit in memory",
            code="LK0806",
            where="--context",
            next=f"ask for {max(SHORTEST, fits // SHORTEST * SHORTEST)} tokens, or for fewer answers at once",
        )
    return size if size <= fits else max(SHORTEST, fits // SHORTEST * SHORTEST)


def allowed_context(config: Any, *, asked: int | None) -> int:
    """As `fitting_context`, whatever the memory."""
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(trained, int) or trained < 1:
        return asked or LONGEST
    if asked and asked > trained:
        raise UsageError(
            f"a context of {asked} tokens is asked for, and the model was trained on {trained}",
            code="LK0806",
            where="--context",
            next=f"ask for {trained} or less",
        )
    return asked or min(trained, LONGEST)


def _token_bytes(model: Any) -> int:
    """Memory that one token of context takes: its keys and values, their copies in one layer, and its part of the masks."""
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    cached = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(model.dtype.itemsize * ((2 * layers + 1) * cached * width + 2 * heads * width + 2 * _STEP_TOKENS))


def _settings(context: int, parallel: int) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=parallel * (math.ceil(context / _PAGE) + _SPARE_PAGES),
        max_batch_tokens=max(_STEP_TOKENS, parallel),
        max_requests_per_batch=parallel,
        # Graphs, and steps prepared ahead, would read how a token is chosen before the one before it is known.
        use_cuda_graph=False,
        use_async_batching=False,
        auto_switch_to_flash=False,  # it knows no fp32, and may fetch code from a hub
    )


class _Draws:
    """The numbers in [0, 1) that choose the tokens of one answer, the same at a step as often as it is asked for."""

    def __init__(self, choice: Choice, prompt: int) -> None:
        self.decoding = choice.decoding
        self.prompt = prompt
        self._source = np.random.default_rng(choice.seed)
        self._made: list[float] = []

    def at(self, step: int) -> float:
        while len(self._made) <= step:
            self._made.append(float(self._source.random(dtype=np.float32)))
        return self._made[step]


class _Chooser(processors.ContinuousBatchingLogitsProcessor):
    """Chooses each row's token by its own draws, and leaves the manager, which takes the likeliest, no other."""

    supported_kwargs = {"draws": _Draws}  # noqa: RUF012 - transformers declares it so
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[tuple[_Draws, int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Any) -> torch.Tensor:
        states = [request.state for request in requests_with_new_token]
        draws = [state.logit_processor_kwargs["draws"] for state in states]
        # Of a request that was put off, what it had said is part of its new prompt.
        known = [len(state.initial_tokens) + len(state.generated_tokens) for state in states]
        self._rows = [(one, length - one.prompt) for one, length in zip(draws, known, strict=True)]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        for row, (draws, step) in enumerate(self._rows):
            if draws.decoding.temperature:
                token = decode.choose(
                    scores[row : row + 1], draws.decoding, torch.tensor([draws.at(step)], device=scores.device)
                )
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores


def _processors() -> Any:
    found = processors.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_Chooser()]))
    found.tensors_required = 1
    return found


def _broken(error: object) -> MachineError:
    text = _first_line(error)
    if "emory" in text:
        return MachineError(
            f"out of memory while answering: {text}", code="LK0805", next="ask for a smaller context or fewer answers at once"
        )
    return MachineError(f"transformers failed while answering: {text}", code="LK0805", next="start it again")


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
