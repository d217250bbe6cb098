"""The way through vLLM's asynchronous engine, against a stand-in of the shape that its documentation describes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmkit.answers import Decoding
from llmkit.engine import vllm_stream
from llmkit.engine.requests import Choice, Request
from llmkit.errors import MachineError


class EngineDeadError(Exception):
    """vLLM's own: no RuntimeError."""


@dataclass
class Standin:
    """`AsyncLLM`: says the prompt's tokens one by one, then the first stop token; token 99 kills it, 98 goes on for ever."""

    arguments: dict[str, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    cancelled: int = 0
    down: bool = False
    errored: bool = False

    async def generate(self, prompt: dict[str, list[int]], sampling: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append((sampling, request_id))
        ids = prompt["prompt_token_ids"]
        try:
            while ids == [98]:
                await asyncio.sleep(0.01)
                yield SimpleNamespace(finished=False, outputs=[SimpleNamespace(token_ids=[98], finish_reason=None)])
            said = [*ids, sampling.stop_token_ids[0]][: sampling.max_tokens]
            for position, token in enumerate(said, 1):
                await asyncio.sleep(0)
                if token == 99:
                    self.errored = True
                    raise EngineDeadError("the engine core died")
                done = position == len(said)
                reason = ("stop" if token in sampling.stop_token_ids else "length") if done else None
                yield SimpleNamespace(finished=done, outputs=[SimpleNamespace(token_ids=[token], finish_reason=reason)])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def shutdown(self) -> None:
        self.down = True


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    found = Standin()

    def from_engine_args(arguments: Any) -> Standin:
        asyncio.get_running_loop()  # vLLM starts tasks of its own
        found.arguments = vars(arguments)
        if "broken" in arguments.model:
            raise ValueError("no such architecture")
        return found

    parts = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA="delta")},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=from_engine_args)},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    return found


def said(request: Request) -> tuple[list[int | None], str]:
    tokens, finish = [], ""
    while not finish:
        step = next(request)
        tokens.append(step.token)
        finish = step.finish
    return tokens, finish


def test_answers_come_token_by_token_with_settings_of_their_own(standin: Standin) -> None:
    engine = vllm_stream.Engine(Path("model"), stops=[2], context=128, parallel=4)
    hot = Choice(Decoding(3, temperature=0.7, top_p=0.9), seed=2**40 + 1)
    requests = [engine.ask([7, 8], Choice(Decoding(9, top_p=0.5))), engine.ask([7, 8, 9, 10], hot)]
    assert [said(request) for request in requests] == [([7, 8, 2], "stop"), ([7, 8, 9], "length")]
    greedy, sampled = (sampling for sampling, _ in standin.asked)
    assert (greedy.temperature, greedy.top_p, greedy.seed, greedy.output_kind) == (0.0, 1.0, None, "delta")
    assert (sampled.temperature, sampled.top_p, sampled.seed) == (0.7, 0.9, 1)
    assert len({name for _, name in standin.asked}) == 2
    assert standin.arguments["trust_remote_code"] is False
    assert (standin.arguments["max_model_len"], standin.arguments["max_num_seqs"]) == (128, 4)
    engine.close()
    assert standin.down


def test_closing_one_drops_it_and_closing_all_tells_them(standin: Standin) -> None:
    engine = vllm_stream.Engine(Path("model"), stops=[2], context=128, parallel=4)
    first, second = (engine.ask([98], Choice(Decoding(9))) for _ in range(2))
    next(first)
    next(second)
    first.close()
    assert len(list(iter(lambda: next(first, None), None))) < 100
    engine.close()
    with pytest.raises(MachineError, match="shut down"):
        said(second)
    with pytest.raises(MachineError, match="shut down"):
        engine.ask([1], Choice(Decoding(1)))
    assert standin.cancelled == 2


def test_an_engine_that_dies_is_a_machine_error(standin: Standin) -> None:
    engine = vllm_stream.Engine(Path("model"), stops=[2], context=128, parallel=4)
    assert engine.alive
    with pytest.raises(MachineError, match="engine core died"):
        said(engine.ask([7, 99], Choice(Decoding(9))))
    assert not engine.alive
    engine.close()


def test_a_model_that_vllm_does_not_know_and_a_vllm_that_is_not_there(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineError, match="no such architecture"):
        vllm_stream.Engine(Path("broken"), stops=[2], context=128, parallel=4)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.async_llm", None)
    with pytest.raises(MachineError, match="not installed"):
        vllm_stream.Engine(Path("model"), stops=[2], context=128, parallel=4)
