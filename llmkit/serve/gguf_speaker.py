"""Speaks through llama.cpp's own server. Knows its requests and events; the child process is `gguf.runtime`'s.

llama.cpp batches what runs in its slots token by token, and rounds in other ways as it does: only fp32 files say the same
in company as alone. What a prompt has in common with an earlier one is not computed again, unless a seed asks for an answer
that can be repeated: with a seed and one slot, or an fp32 file, the same prompt gets the same answer.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, MachineError
from llmkit.gguf import container, runtime, window
from llmkit.gguf.event_stream import BrokenError, RefusedError
from llmkit.serve.answer import Answer
from llmkit.serve.speaker import Message, Piece, Wish
from llmkit.serve.turns import Turns

_TEMPLATE = "tokenizer.chat_template"


class GgufSpeaker:
    """A `Speaker` for a GGUF file, or the first of its parts, perhaps with a LoRA over it. `context` None: what memory allows.

    Raises:
        DataError: no such file, or no GGUF file.
        UsageError: the context is larger than the model's, or does not fit in memory.
        MachineError: llama.cpp does not load it.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        context: int | None = None,
        parallel: int = 1,
        lora: Path | None = None,
        threads: int | None = None,
    ) -> None:
        exact = runtime.is_exact(path)  # keys and values in fp32, as evaluation measures such a file
        self.name = name
        self.runtime = "llama.cpp on cpu"
        self.context = window.fitting_context(path, asked=context, slots=parallel, exact=exact)
        self.parallel = parallel
        self._path = path
        self._has_template = bool(container.open_split(path)[0].metadata.get(_TEMPLATE))
        self._turns = Turns(parallel)
        self._closed = False
        self._server = runtime.LlamaServer(
            path,
            threads=threads or os.cpu_count() or 1,
            context=self.context,
            slots=parallel,
            exact_attention=exact,
            adapter=lora,
            reuse=True,
        ).__enter__()

    @property
    def alive(self) -> bool:
        return self._server.alive

    def render(self, messages: Sequence[Message]) -> str:
        if not self._has_template:  # llama.cpp would take ChatML, which such a model has never seen
            raise DataError(
                "this model has no chat template",
                code="LK0801",
                where=str(self._path),
                next="name a fine-tuned or instruct model; `llmkit serve` completes texts without a template",
            )
        return self._server.render(messages)

    def count(self, prompt: str) -> int:
        return len(self._server.tokenize(prompt, add_special=True, parse_special=True))

    def speak(self, prompt: str, wish: Wish) -> Answer:
        if self._closed:
            raise MachineError("the model was shut down", code="LK0805", where=self.name)
        return Answer(_Source(self._server, self._turns, prompt, wish), wish.stop)

    def close(self) -> None:
        self._closed = True
        self._server.__exit__(None, None, None)  # what still streams ends broken, and what waits finds nobody


class _Source:
    """A place in the line, then llama.cpp's events."""

    def __init__(self, server: runtime.LlamaServer, turns: Turns, prompt: str, wish: Wish) -> None:
        self._server = server
        self._turn = turns.join()
        self._stream = server.stream(prompt, _body(wish), reuse=wish.seed is None)
        self._told = 0

    def __next__(self) -> Piece:
        if not self._turn.wait():
            raise StopIteration
        try:
            event = next(self._stream)
        except (RefusedError, BrokenError) as error:
            raise self._server.stream_error(error) from None
        made = int(event.get("tokens_predicted", 0))
        tokens, self._told = made - self._told, made
        text = str(event.get("content", "")).encode("utf-8", "replace").decode()
        return Piece(text, tokens, _finish(event))

    def close(self) -> None:
        self._stream.close()
        self._turn.leave()


def _body(wish: Wish) -> dict[str, Any]:
    seed = None if wish.seed is None else wish.seed % 2**31  # llama.cpp's has 32 bits, and one of them means another each time
    choice = runtime.sampling(temperature=wish.temperature, top_p=wish.top_p, seed=seed)
    return {**choice, "n_predict": -1 if wish.max_tokens is None else wish.max_tokens}


def _finish(event: dict[str, Any]) -> str:
    if not event.get("stop"):
        return ""
    return "length" if event.get("stop_type") == "limit" else "stop"
