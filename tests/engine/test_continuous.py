"""Answers made together are those made alone, and those of plain generation."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.answers import Decoding
from llmkit.engine import continuous, decode, loading
from llmkit.engine.requests import Choice, Request
from llmkit.errors import MachineError, UsageError
from tests.conftest import LINES
from tests.gguf.families import FAMILIES

STOPS = [0, 2]


@pytest.fixture(scope="module", params=["tiny", "gemma3", "mistral"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full attention; Gemma's mix of it with a window; a window in every layer."""
    if request.param == "tiny":
        return tiny_model
    return FAMILIES[request.param].build(tmp_path_factory.mktemp(request.param) / "model")


def said(request: Request) -> tuple[list[int], str]:
    tokens, finish = [], ""
    while not finish:
        step = next(request)
        finish = step.finish
        if step.token is not None:
            tokens.append(step.token)
    return tokens, finish


def test_answers_made_together_are_those_of_plain_greedy_generation(folder: Path) -> None:
    model, tokenizer = loading.load_model(folder), loading.load_tokenizer(folder)
    prompts = [
        tokenizer(line * (1 + number), add_special_tokens=False)["input_ids"][:90] for number, line in enumerate(LINES[:5])
    ]
    decoding = Decoding(24)
    expected = [decode.decode(model, [prompt], decoding=decoding, stops=STOPS, seeds=[[0]])[0].ids for prompt in prompts]
    engine = continuous.Engine(model, stops=STOPS, context=160, parallel=3)  # half of them wait
    try:
        requests = [engine.ask(prompt, Choice(decoding)) for prompt in prompts]
        found = [said(request) for request in requests]
    finally:
        engine.close()
    assert [tokens for tokens, _ in found] == expected
    assert [finish for _, finish in found] == ["stop" if one[-1] in STOPS else "length" for one in expected]
    assert len({tuple(one) for one in expected}) > 1


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[continuous.Engine]:
    found = continuous.Engine(loading.load_model(tiny_model), stops=STOPS, context=256, parallel=4)
    yield found
    found.close()


def test_a_seed_says_the_same_alone_and_in_company_and_greedy_beside_it_stays_greedy(engine: continuous.Engine) -> None:
    hot = Decoding(20, temperature=1.5, top_p=0.9)
    alone = said(engine.ask([5, 6, 7], Choice(hot, 3)))
    greedy = said(engine.ask([5, 6, 7], Choice(Decoding(20))))
    others = [Choice(hot, 3), Choice(Decoding(20)), Choice(hot, 4), Choice(hot, 3)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda choice: said(engine.ask([5, 6, 7], choice)), others))
    assert found == [alone, greedy, found[2], alone]
    assert found[2] != alone


def test_draws_follow_the_probabilities_at_that_temperature(tiny_model: Path, engine: continuous.Engine) -> None:
    prompt, draws = [5, 6, 7], 300
    model = loading.load_model(tiny_model)
    with torch.inference_mode():
        expected = (model(torch.tensor([prompt])).logits[0, -1].float() / 0.5).softmax(-1)
    likeliest = int(expected.argmax())
    choices = [Choice(Decoding(1, temperature=0.5), seed) for seed in range(draws)]
    first = [said(request)[0][0] for request in [engine.ask(prompt, choice) for choice in choices]]
    share, chance = first.count(likeliest) / draws, float(expected[likeliest])
    assert abs(share - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5
    assert len(set(first)) > 1


def test_a_closed_request_makes_room_and_says_nothing_more(engine: continuous.Engine) -> None:
    running = [engine.ask([5], Choice(Decoding(200, temperature=9.0), seed)) for seed in range(4)]
    for request in running:
        next(request)
    waiting = engine.ask([6], Choice(Decoding(4)))
    for request in running:
        threading.Timer(0.05, request.close).start()
    for request in running:
        assert sum(1 for _ in iter(lambda request=request: next(request, None), None)) < 200
    assert said(waiting)[0]


@pytest.mark.parametrize("by_failure", [True, False])
def test_an_engine_that_ends_is_an_error_for_all_that_run_or_wait(
    by_failure: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loading.load_model(tiny_model)
    engine = continuous.Engine(model, stops=[], context=256, parallel=1)
    requests = [engine.ask([5], Choice(Decoding(250, temperature=9.0), 1)) for _ in range(3)]
    next(requests[0])
    assert engine.alive
    if by_failure:

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("a kernel failed")

        monkeypatch.setattr(model, "forward", fail)
    else:
        engine.close()

    def outcome(request: Request) -> str:
        try:
            said(request)
        except MachineError as error:
            return error.what
        return ""

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(outcome, requests))
    assert all(("kernel" if by_failure else "shut down") in what for what in found)
    assert not engine.alive
    with pytest.raises(MachineError):
        engine.ask([5], Choice(Decoding(1)))
    engine.close()


def test_memory_is_bounded_by_the_context_and_the_answers_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loading.load_model(tiny_model)
    assert continuous.fitting_context(model, asked=None, parallel=4) == 512
    with pytest.raises(UsageError, match="trained on 512"):
        continuous.fitting_context(model, asked=513, parallel=1)
    monkeypatch.setattr(loading, "free_memory", lambda: 2 * 300 * continuous._token_bytes(model))
    assert continuous.fitting_context(model, asked=None, parallel=1) == 256
    with pytest.raises(UsageError, match="memory"):
        continuous.fitting_context(model, asked=400, parallel=1)


def test_a_model_that_cannot_be_batched_is_said_to_be_one() -> None:
    class Other:
        def init_continuous_batching(self, **_: Any) -> None:
            raise ValueError("Invalid layer type: linear_attention")

    with pytest.raises(MachineError, match="linear_attention"):
        continuous.Engine(Other(), stops=[], context=64, parallel=1)


def test_a_request_hears_only_what_is_new() -> None:
    request = Request(lambda: None)
    request.hear_all([4], finish="")
    request.hear_all([4, 5, 6], finish="length")
    assert said(request) == ([4, 5, 6], "length")
    request.hear_all([4, 5, 6], finish="stop")
    assert said(request) == ([], "stop")
