"""llama.cpp speaks what evaluation measured, gives way at once when nobody listens, and its death is no hang."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmkit.answers import Decoding
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import window
from llmkit.gguf.runtime import LlamaServer
from llmkit.serve.gguf_speaker import GgufSpeaker
from llmkit.serve.speaker import Wish
from tests.conftest import EXCHANGES

CHATS = [[{"role": "user", "content": question}] for question, _ in EXCHANGES]
GREEDY = Wish(max_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def speaker(tiny_gguf: Callable[[str], Path]) -> Iterator[GgufSpeaker]:
    found = GgufSpeaker(tiny_gguf("f32"), name="tiny", context=256, parallel=2, threads=1)
    yield found
    found.close()


def said(speaker: GgufSpeaker, prompt: str, wish: Wish = GREEDY) -> tuple[str, int, str]:
    pieces = list(speaker.speak(prompt, wish))
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    return "".join(piece.text for piece in pieces), sum(piece.tokens for piece in pieces), pieces[-1].finish


def test_what_is_served_is_what_evaluation_measures_in_company_as_alone(
    speaker: GgufSpeaker, tiny_gguf: Callable[[str], Path]
) -> None:
    with LlamaServer(tiny_gguf("f32"), threads=1, context=256, exact_attention=True) as server:
        measured = server.answer_many(CHATS, decoding=Decoding(24), keys=[str(number) for number in range(len(CHATS))])
        prompts = [server.render(chat) for chat in CHATS]
        ids = [server.tokenize(prompt, add_special=True, parse_special=True) for prompt in prompts]
    assert [speaker.render(chat) for chat in CHATS] == prompts
    assert [speaker.count(prompt) for prompt in prompts] == [len(one) for one in ids]
    with ThreadPoolExecutor(len(prompts)) as pool:
        served = list(pool.map(lambda prompt: said(speaker, prompt), prompts))
    assert [text for text, _, _ in served] == [one.text for one in measured]
    assert [finish == "stop" for _, _, finish in served] == [one.stopped for one in measured]
    assert len({text for text, _, _ in served}) > 1


def test_the_same_seed_says_the_same_and_another_another(speaker: GgufSpeaker) -> None:
    prompt = speaker.render(CHATS[0])
    texts = [said(speaker, prompt, Wish(max_tokens=16, temperature=1.5, seed=seed))[0] for seed in (3, 3, 2**40 + 4)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_answer_and_is_not_seen(speaker: GgufSpeaker) -> None:
    prompt = speaker.render(CHATS[1])
    whole, tokens, _ = said(speaker, prompt)
    stop = whole[len(whole) // 2 :][:3]
    text, fewer, finish = said(speaker, prompt, Wish(max_tokens=24, temperature=0.0, stop=(stop,)))
    assert (text, finish) == (whole[: whole.index(stop)], "stop")
    assert fewer <= tokens


def test_an_answer_ends_with_its_length_or_the_context(speaker: GgufSpeaker) -> None:
    prompt = speaker.render(CHATS[1])
    assert said(speaker, prompt, Wish(max_tokens=3, temperature=0.0))[1:] == (3, "length")
    # Nothing but the context ends it: the likeliest token is no end.
    _, tokens, finish = said(speaker, "The quick brown fox", Wish(temperature=0.0))
    assert finish == "stop" or tokens + speaker.count("The quick brown fox") >= 250


def test_a_prompt_beyond_the_context_is_refused_and_the_next_is_answered(speaker: GgufSpeaker) -> None:
    with pytest.raises(DataError, match="context"):
        list(speaker.speak("long " * 400, GREEDY))
    assert said(speaker, "Hello")[1]


def test_closing_from_another_thread_frees_the_place(speaker: GgufSpeaker) -> None:
    endless = Wish(temperature=5.0)
    running = [speaker.speak("a", endless) for _ in range(2)]
    for answer in running:
        next(answer)
    waiting = speaker.speak("b", GREEDY)
    for answer in running:
        threading.Timer(0.1, answer.close).start()
    started = time.monotonic()
    for answer in running:
        list(answer)
    assert list(waiting)
    assert time.monotonic() - started < 20
    left = speaker.speak("c", GREEDY)
    left.close()
    assert list(left) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_signals_that_reach_the_whole_group_are_left_to_who_started_it(speaker: GgufSpeaker) -> None:
    child = speaker._server._child
    assert child is not None
    answer = speaker.speak("a", Wish(temperature=5.0, max_tokens=40))
    next(answer)
    for name in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(name)
    assert "".join(piece.text for piece in answer)
    assert said(speaker, "Hello")[1]


@pytest.mark.parametrize("by_kill", [True, False])
def test_a_runtime_that_ends_is_an_error_for_all_that_run_or_wait(by_kill: bool, tiny_gguf: Callable[[str], Path]) -> None:
    speaker = GgufSpeaker(tiny_gguf("f32"), name="tiny", context=512, parallel=1, threads=1)
    answers = [speaker.speak("a", Wish(temperature=5.0)) for _ in range(40)]  # more than it makes before the blow
    next(answers[0])
    assert speaker.alive

    def outcome(answer: Iterator[object]) -> type[BaseException] | None:
        try:
            list(answer)
        except MachineError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(len(answers)) as pool:
        found = [pool.submit(outcome, answer) for answer in answers]
        if by_kill:
            child = speaker._server._child
            assert child is not None
            child.kill()
        else:
            speaker.close()
        ends = [one.result(timeout=60) for one in found]
    assert not speaker.alive
    assert ends[-1] is MachineError
    assert ends == sorted(ends, key=bool)  # in order: those answered before, then those that were not
    speaker.close()
    with pytest.raises(MachineError, match="shut down"):
        speaker.speak("a", GREEDY)


def test_a_file_without_a_template_completes_but_does_not_chat(tiny_gguf: Callable[[str], Path]) -> None:
    speaker = GgufSpeaker(tiny_gguf("bare"), name="bare", context=64, threads=1)
    try:
        with pytest.raises(DataError, match="no chat template"):
            speaker.render(CHATS[0])
        assert said(speaker, "Hello", Wish(max_tokens=4, temperature=0.0))[1]
    finally:
        speaker.close()


def test_a_context_is_bounded_by_the_model_and_by_memory(
    tiny_gguf: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf("f32")
    assert window.fitting_context(path, asked=None, slots=4, exact=True) == 512  # what the model was trained on
    with pytest.raises(UsageError, match="trained on 512"):
        window.fitting_context(path, asked=513, slots=1, exact=True)
    a_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
    monkeypatch.setattr(window, "_free", lambda: 2 * a_token * 300)
    assert window.fitting_context(path, asked=None, slots=2, exact=True) == 256
    assert window.fitting_context(path, asked=None, slots=1, exact=True) == 512
    with pytest.raises(UsageError, match="memory"):
        window.fitting_context(path, asked=400, slots=2, exact=True)
