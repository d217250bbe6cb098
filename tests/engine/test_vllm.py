"""The way through vLLM, against a stand-in of the shape that its documentation describes: vLLM itself needs a GPU."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmkit.answers import Decoding, Store
from llmkit.engine import loading, templates, vllm
from llmkit.errors import MachineError, UsageError
from tests.training import Tally

PROMPTS = [[{"role": "user", "content": content}] for content in ("hello", "你好", "hello", "word " * 600)]


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop_token_ids: list[int]
    logprobs: int


@dataclass
class Completion:
    token_ids: list[int]
    cumulative_logprob: float
    finish_reason: str


@dataclass
class Output:
    outputs: list[Completion]


@dataclass
class Standin:
    """`vllm.LLM`: says a prompt's last two tokens and the first stop token, or is cut short."""

    loaded: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)

    def make(self, **given: Any) -> "Standin":
        self.loaded.append(given)
        return self

    def generate(self, prompts: Sequence[dict[str, Any]], parameters: Sequence[SamplingParams], *, use_tqdm: bool) -> Any:
        assert not use_tqdm
        found = []
        for prompt, one in zip(prompts, parameters, strict=True):
            ids = prompt["prompt_token_ids"]
            self.asked.append((ids, one))
            said = [*ids[-2:], one.stop_token_ids[0]][: one.max_tokens]
            found.append(Output([Completion(said, -0.5 * len(said), "stop" if len(said) == 3 else "length")]))
        return found


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    found, module = Standin(), ModuleType("vllm")
    module.LLM, module.SamplingParams = found.make, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return found


def ask(folder: Path, **options: Any) -> Any:
    given = {"decoding": Decoding(8), **options}
    return vllm.answer(folder, loading.load_tokenizer(folder), PROMPTS, template=templates.resolve("chatml", folder), **given)


def test_answers_come_in_the_prompts_order_and_one_without_room_fails(tiny_model: Path, standin: Standin) -> None:
    found = ask(tiny_model).items
    assert [bool(one.failure) for one in found] == [False, False, False, True]
    assert all((one.stopped, one.tokens, one.log_probability) == (True, 3, -0.5) for one in found[:3])
    assert found[0].text == found[2].text
    assert "<|" not in found[0].text
    [loaded] = standin.loaded
    assert loaded["trust_remote_code"] is False
    assert not ask(tiny_model, decoding=Decoding(2)).items[0].stopped


def test_sampled_answers_have_seeds_of_their_own(tiny_model: Path, standin: Standin) -> None:
    ask(tiny_model, decoding=Decoding(8, temperature=0.7, top_p=0.9, seed=1))
    seeds = [one.seed for _, one in standin.asked]
    assert len(set(seeds)) == 3
    assert all((one.temperature, one.top_p) == (0.7, 0.9) for _, one in standin.asked)


def test_what_the_store_holds_is_not_asked_and_loads_nothing(tiny_model: Path, standin: Standin, tmp_path: Path) -> None:
    bar = Tally()
    with Store(tmp_path / "a.jsonl") as store:
        first = ask(tiny_model, store=store)
    with Store(tmp_path / "a.jsonl") as store:
        assert ask(tiny_model, store=store, bar=bar) == first
    assert (len(standin.loaded), len(standin.asked)) == (1, 3)
    assert sum(bar.advances) == len(PROMPTS)


def test_without_vllm_the_error_says_how_to_get_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MachineError, match="not installed") as caught:
        ask(tiny_model)
    assert "pip install vllm" in caught.value.next


def test_beam_search_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="beam"):
        ask(tiny_model, decoding=Decoding(8, beams=2))
