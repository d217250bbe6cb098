"""Batches and the store: what was answered is kept, a killed run goes on as if it had not been, and memory is respected."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llmkit import answers, memory
from llmkit.answers import Decoding, Store
from llmkit.engine import decode, generate, loading, room, templates
from llmkit.errors import MachineError, UsageError
from tests.training import Tally

PROMPTS = [[{"role": "user", "content": f"{number}. " + "你好 hello " * (number % 7)}] for number in range(21)]
GREEDY = Decoding(10)
WAYS = [GREEDY, Decoding(10, temperature=1.2, top_p=0.9, seed=3), Decoding(6, beams=2)]
Answer = Callable[..., generate.Answers]


@pytest.fixture(scope="module")
def answer(tiny_model: Path) -> Answer:
    model, tokenizer = loading.load_model(tiny_model), loading.load_tokenizer(tiny_model)
    template = templates.resolve("chatml", tiny_model)

    def run(prompts: Sequence[Any] = PROMPTS, *, decoding: Decoding = GREEDY, **options: Any) -> generate.Answers:
        return generate.answer(model, tokenizer, prompts, template=template, decoding=decoding, **options)

    return run


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were decoded."""
    sizes: list[int] = []
    real = decode.decode

    def count(model: Any, prompts: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(prompts))
        return real(model, prompts, **options)

    monkeypatch.setattr(generate, "decode", count)
    return sizes


def texts(found: generate.Answers) -> list[tuple[str, int, bool]]:
    return [(one.text, one.tokens, one.stopped) for one in found.items]


@pytest.mark.parametrize("decoding", WAYS, ids=["greedy", "sampling", "beams"])
def test_answers_are_the_same_for_every_batch_size(answer: Answer, decoding: Decoding) -> None:
    alone = texts(answer(decoding=decoding, batch_size=1))
    for size in (2, 5, 21, None):
        assert texts(answer(decoding=decoding, batch_size=size)) == alone


@pytest.mark.parametrize("decoding", WAYS, ids=["greedy", "sampling", "beams"])
@pytest.mark.parametrize("killed_after", [0, 1, 2, 4])
def test_a_killed_run_goes_on_with_the_next_batch(
    answer: Answer, batches: list[int], tmp_path: Path, decoding: Decoding, killed_after: int
) -> None:
    whole = texts(answer(decoding=decoding, batch_size=5))
    path, left = tmp_path / "answers.jsonl", killed_after

    class Killed:
        def advance(self, count: int = 1, text: str = "") -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Store(path) as store:
        answer(decoding=decoding, batch_size=5, store=store, bar=Killed())
    batches.clear()
    bar = Tally()
    with Store(path) as store:
        assert texts(answer(decoding=decoding, batch_size=5, store=store, bar=bar)) == whole
        assert len(store) == len(PROMPTS)
    assert batches == [5, 5, 5, 5, 1][killed_after + 1 :]
    assert sum(bar.advances) == len(PROMPTS)


def test_what_the_store_holds_is_not_asked_again(answer: Answer, batches: list[int], tmp_path: Path) -> None:
    with Store(tmp_path / "a.jsonl") as store:
        first = answer(store=store)
    batches.clear()
    with Store(tmp_path / "a.jsonl") as store:
        again = answer(store=store)
    assert not batches
    assert again == first  # its seconds too: the speed is that of the run that did the work


def test_a_half_finished_batch_is_made_again_whole(answer: Answer, batches: list[int], tmp_path: Path) -> None:
    names = answers.keys(PROMPTS)
    with Store(tmp_path / "a.jsonl") as store:
        made = answer(batch_size=7, store=store)
    with Store(tmp_path / "b.jsonl") as store:
        store.put({key: one for key, one in zip(names, made.items, strict=True) if key != names[4]})
        batches.clear()
        assert texts(answer(batch_size=7, store=store)) == texts(made)
    assert batches == [7]


def test_a_resumed_run_keeps_the_batch_size_it_found(answer: Answer, batches: list[int], tmp_path: Path) -> None:
    """However much memory is free by then."""
    with Store(tmp_path / "a.jsonl") as store:
        store.note("batch size, asked for what fits", 4)
        assert answer(store=store).batch_size == 4
    assert batches == [4, 4, 4, 4, 4, 1]


def test_a_prompt_asked_twice_may_be_answered_in_two_ways(answer: Answer) -> None:
    twice = [PROMPTS[3]] * 2
    first, second = answers.keys(twice)
    assert first != second
    sampled = answer(twice, decoding=Decoding(10, temperature=2.0))
    assert sampled.items[0].text != sampled.items[1].text
    greedy = answer(twice)
    assert greedy.items[0].text == greedy.items[1].text


def test_a_prompt_without_room_fails_alone(answer: Answer) -> None:
    long = [{"role": "user", "content": "hello " * 600}]
    found = answer([PROMPTS[0], long, PROMPTS[1]])
    assert [bool(one.failure) for one in found.items] == [False, True, False]
    assert "context of 512" in found.items[1].failure
    assert answer([long]).tokens_per_second == 0
    assert answer([]).items == []


def test_a_batch_that_memory_does_not_hold_is_halved(answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, tried = texts(answer()), []
    real = decode.decode

    def scarce(model: Any, prompts: Sequence[Any], **options: Any) -> Any:
        tried.append(len(prompts))
        if len(prompts) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(model, prompts, **options)

    monkeypatch.setattr(generate, "decode", scarce)
    with Store(tmp_path / "a.jsonl") as store:
        found = answer(batch_size=12, store=store)
        assert texts(found) == whole
        assert found.batch_size == 3  # 12, 6, 3: each divides the last
        tried.clear()
        assert texts(answer(batch_size=12, store=store)) == whole
        assert not tried


def test_no_memory_for_one_prompt_is_told(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(generate, "decode", none)
    with pytest.raises(MachineError, match="one prompt at a time"):
        answer(batch_size=8)


def test_another_failure_of_torch_is_not_taken_for_memory(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(generate, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        answer()


def test_beam_search_does_not_sample(answer: Answer) -> None:
    with pytest.raises(UsageError, match="exclude"):
        answer(decoding=Decoding(4, temperature=1.0, beams=2))


def test_less_memory_makes_smaller_batches(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loading.load_model(tiny_model)
    sizes = []
    for free in (0, 10_000, 1_000_000, 100_000_000, 10**12):
        monkeypatch.setattr(loading, "free_memory", lambda free=free: free)
        sizes.append(room.rows(model, prompt=100, new=50))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, room.MOST["cpu"])
    assert all(size & (size - 1) == 0 for size in sizes)
    assert room.row_bytes(model, prompt=200, new=50) > room.row_bytes(model, prompt=100, new=50)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back on this system")
def test_the_room_of_a_batch_is_about_what_it_takes(smollm2: Path) -> None:
    """So that half of the free memory is enough."""
    model = loading.load_model(smollm2)
    prompts = [[number + 100] * 700 for number in range(8)]
    decode.decode(model, prompts[:1], decoding=Decoding(2), stops=[0], seeds=[(0,)])
    loading.release()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    decode.decode(model, prompts, decoding=Decoding(4), stops=[0], seeds=[(0,)] * 8)
    taken = memory.peak_bytes() - before
    assert 0.5 < taken / (8 * room.row_bytes(model, prompt=700, new=4)) < 1.5


@pytest.mark.slow
def test_a_real_model_says_the_same_for_every_batch_size(smollm2: Path) -> None:
    """In fp32. 24 English prompts of different lengths."""
    model, tokenizer = loading.load_model(smollm2), loading.load_tokenizer(smollm2)
    template = templates.resolve("model", smollm2)
    topics = ["the sea", "a good breakfast", "how bridges stand", "why leaves fall", "two friends", "the number seven"]
    prompts = [
        [{"role": "user", "content": f"Tell me about {topic}" + ", please" * times}] for topic in topics for times in range(4)
    ]
    found = [
        texts(generate.answer(model, tokenizer, prompts, template=template, decoding=Decoding(24), batch_size=size))
        for size in (1, 7, 24)
    ]
    assert found[0] == found[1] == found[2]
