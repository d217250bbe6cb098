"""Speaks through transformers: a model's folder, a bitsandbytes one, or a base with an adapter. Knows texts and token ids;
how they are batched is `engine.continuous`'s.

In fp32 it says, token for token, what evaluation measured, and the same seed and prompt get the same answer, in company as
alone. bitsandbytes weights compute a batch otherwise than its rows alone: INT8 and NF4 promise neither. An adapter is merged
into its base in memory, in fp32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.answers import Decoding
from llmkit.engine import adapted, continuous, delta, loading, templates
from llmkit.engine.requests import Choice, Engine, Request
from llmkit.engine.templates import ChatTemplate
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.serve.answer import Answer
from llmkit.serve.characters import Characters
from llmkit.serve.speaker import Message, Piece, Wish


class Prompts:
    """How a folder's messages become token ids: as evaluation has them, from the folder's own template and tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = loading.load_tokenizer(folder)
        self.template: ChatTemplate | None = None
        self._refusal: UsageError | None = None
        try:
            self.template = templates.resolve("model", folder)
        except UsageError as error:  # a base model has none, and can complete a text all the same
            self._refusal = error
        self._opening = self._begins()

    def render(self, messages: Sequence[Message]) -> str:
        if self.template is None:
            assert self._refusal
            raise DataError(
                self._refusal.what,
                code="LK0801",
                where=self._refusal.where,
                next="name a fine-tuned or instruct model; `llmkit serve` completes texts without a template",
            )
        return templates.render(messages, self.tokenizer, self.template, add_generation_prompt=True)

    def ids(self, prompt: str) -> list[int]:
        """A prompt's, with the BOS that the model is used to, once."""
        text = prompt if prompt.startswith(self._opening) else self._opening + prompt
        return [int(one) for one in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def stops(self, generation: Any) -> list[int]:
        """The tokens that end an answer: those of the model's generation config, and the template's end of a turn."""
        known = generation.eos_token_id
        ids = [known] if isinstance(known, int) else list(known or [])
        if self.template is not None:
            ids.append(self.tokenizer.convert_tokens_to_ids(self.template.eos))
        return list(dict.fromkeys(ids))

    def _begins(self) -> str:
        """The text of the BOS that a plain text needs: the template's, or without one the tokenizer's."""
        bos = self.tokenizer.bos_token
        if not bos:
            return ""
        if self.template is not None:
            return bos if self.render([{"role": "user", "content": "Kadlimerre"}]).startswith(bos) else ""
        return bos if self.tokenizer("Kadlimerre")["input_ids"][0] == self.tokenizer.bos_token_id else ""


class ModelSpeaker:
    """A `Speaker` over an engine, whichever runtime that is; `by_transformers` makes one."""

    def __init__(self, engine: Engine, prompts: Prompts, *, name: str, runtime: str, context: int, parallel: int) -> None:
        self.name = name
        self.runtime = runtime
        self.context = context
        self.parallel = parallel
        self._engine = engine
        self._prompts = prompts

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def render(self, messages: Sequence[Message]) -> str:
        return self._prompts.render(messages)

    def count(self, prompt: str) -> int:
        return len(self._prompts.ids(prompt))

    def speak(self, prompt: str, wish: Wish) -> Answer:
        ids = self._prompts.ids(prompt)
        left = self.context - len(ids)
        if left < 1 or not ids:
            raise _no_room(len(ids), self.context, self.name)
        longest = left if wish.max_tokens is None else min(wish.max_tokens, left)
        choice = Choice(Decoding(longest, temperature=wish.temperature, top_p=wish.top_p), wish.seed)
        return Answer(_Source(self._engine.ask(ids, choice), self._prompts.tokenizer), wish.stop)

    def close(self) -> None:
        self._engine.close()


def by_transformers(
    path: Path, *, name: str, context: int | None, parallel: int = 1, base: Path | None = None, threads: int | None = None
) -> ModelSpeaker:
    """The model in `path` or, with `base`, that model with the adapter in `path`. `context` None: what memory allows.

    Raises:
        DataError: a folder that is broken, or an adapter that does not fit its base.
        UsageError: the context is larger than the model's, or does not fit in memory.
        MachineError: the model does not fit in memory, or transformers cannot batch it.
    """
    if threads:
        loading.use_threads(threads)
    prompts = Prompts(path)
    model = _adapted(base, path) if base else loading.load_model(path)
    size = continuous.fitting_context(model, asked=context, parallel=parallel)
    engine = continuous.Engine(model, stops=prompts.stops(model.generation_config), context=size, parallel=parallel)
    return ModelSpeaker(engine, prompts, name=name, runtime=_runtime(model), context=size, parallel=parallel)


def _no_room(prompt: int, context: int, name: str) -> DataError:
    """The refusal of a prompt that leaves no room for an answer, or that is empty."""
    if not prompt:
        return DataError("the prompt is empty", code="LK0807", where=name, next="give it at least one token")
    return DataError(
        f"the prompt has {prompt} tokens and leaves no room for an answer in a context of {context}",
        code="LK0807",
        where=name,
        next="shorten the conversation, or ask for a larger context",
    )


class _Source:
    """The text of a request's tokens."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        self._request = request
        self._characters = Characters(tokenizer)

    def __next__(self) -> Piece:
        step = next(self._request)
        text = "" if step.token is None else self._characters.push(step.token)
        if step.finish:
            text += self._characters.flush()
        return Piece(text, 0 if step.token is None else 1, step.finish)

    def close(self) -> None:
        self._request.close()


def _adapted(base: Path, adapter: Path) -> Any:
    loading.require_unquantized(base, "an adapter is merged into the unquantized base only")
    model = loading.load_model(base)
    try:
        return adapted.by_peft(model, [(delta.read(adapter), 1.0)]).merge_and_unload().eval()
    except RuntimeError as error:
        raise MachineError(f"the adapter cannot be merged: {error}", code="LK0804", where=str(adapter)) from error


def _runtime(model: Any) -> str:
    quantized = getattr(model.config, "quantization_config", None)
    kind = "bitsandbytes" if quantized else f"transformers {str(model.dtype).removeprefix('torch.')}"
    return f"{kind} on {model.device.type}"
