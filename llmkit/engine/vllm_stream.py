"""Answers made at once by vLLM, where it is installed. Knows vLLM's asynchronous engine and token ids; nothing of texts.

vLLM computes in the folder's own type and rounds with the batch. Written after the documentation of `AsyncLLM` (0.9 to 0.32):
its tests run against a stand-in of that shape, and it has not been tried on a GPU yet.
"""

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from llmkit.engine.requests import Choice, Request
from llmkit.errors import MachineError

_STOP_SECONDS = 60.0


class Engine:
    """The model in `path`, loaded by vLLM, in an event loop of its own.

    Raises:
        MachineError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, path: Path, *, stops: Sequence[int], context: int, parallel: int) -> None:
        self._stops = list(stops)
        self._names = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._llm = self._run(_load(path, context, parallel))
        except BaseException:
            self._end_loop()
            raise

    @property
    def alive(self) -> bool:
        return not self._closed and not self._llm.errored

    def ask(self, prompt: Sequence[int], choice: Choice) -> Request:
        """Begin an answer. Raises MachineError where the model was shut down."""
        if self._closed:
            raise _shut_down()
        work: list[Future[None]] = []
        request = Request(lambda: _cancel(work))
        work.append(asyncio.run_coroutine_threadsafe(self._answer(list(prompt), choice, request), self._loop))
        work[0].add_done_callback(lambda done: _tell(done, request))
        return request

    def close(self) -> None:
        """End everything; answers under way end with a MachineError."""
        if not self._closed:
            self._closed = True
            self._run(self._cancel_all())
            self._llm.shutdown()
            self._end_loop()

    async def _answer(self, prompt: list[int], choice: Choice, request: Request) -> None:
        """vLLM drops a request whose iteration is cancelled."""
        name = f"llmkit-{next(self._names)}"
        async for output in self._llm.generate({"prompt_token_ids": prompt}, self._parameters(choice), name):
            made = output.outputs[0]
            request.hear(list(made.token_ids), finish=(made.finish_reason or "length") if output.finished else "")

    def _parameters(self, choice: Choice) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        decoding = choice.decoding
        return SamplingParams(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p if decoding.temperature else 1.0,
            seed=None if choice.seed is None else choice.seed % 2**31,
            stop_token_ids=self._stops,
            output_kind=RequestOutputKind.DELTA,
        )

    async def _cancel_all(self) -> None:
        others = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        for one in others:
            one.cancel()
        await asyncio.wait(others, timeout=_STOP_SECONDS) if others else None

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


def generation_config(path: Path) -> Any:
    """What the folder says of the ends of an answer; vLLM does not tell what it read."""
    return GenerationConfig.from_pretrained(path) if (path / "generation_config.json").is_file() else GenerationConfig()


async def _load(path: Path, context: int, parallel: int) -> Any:
    """In the loop: vLLM binds its own tasks to the one that runs."""
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise MachineError("vLLM is not installed", code="LK0808", next="pip install vllm, on a machine with a GPU") from error
    try:
        # Its generation_config default, "auto", would take sampling settings from the model's folder.
        arguments = AsyncEngineArgs(
            model=str(path),
            dtype="auto",
            trust_remote_code=False,
            max_model_len=context,
            max_num_seqs=parallel,
            generation_config="vllm",
        )
        return AsyncLLM.from_engine_args(arguments)
    except (RuntimeError, ValueError, OSError) as error:
        raise MachineError(
            f"vLLM cannot load this model: {_first_line(error)}",
            code="LK0804",
            where=str(path),
            next="leave --backend out: transformers runs it",
        ) from error


def _tell(done: "Future[None]", request: Request) -> None:
    """Why an answer ended, where it did not end by itself."""
    if done.cancelled():
        request.fail(_shut_down())
    elif (error := done.exception()) is not None:
        request.fail(_broken(error))


def _cancel(work: "list[Future[None]]") -> None:
    work[0].cancel()


def _shut_down() -> MachineError:
    return MachineError("the model was shut down", code="LK0805")


def _broken(error: BaseException) -> MachineError:
    return MachineError(f"vLLM failed while answering: {_first_line(error)}", code="LK0805", next="start it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
