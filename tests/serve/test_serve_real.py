"""The server before real runtimes: llama.cpp and transformers."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from llmkit.serve import opening
from tests.serve.served import Server, eventually, serving

CHATML = Path(__file__).parents[2] / "llmkit" / "engine" / "chat_templates" / "chatml.jinja"
QUESTIONS = ["What is the capital of France?", "你好！", "Name three colours 👋.", "Write a short poem about the sea."]


@contextlib.contextmanager
def real(path: Path, **settings: Any) -> Iterator[Server]:
    """A server before the runtime of this file or folder, as `llmkit serve` opens it."""
    with serving(opened=lambda: opening.open_speaker(opening.find(str(path)), **settings), name="real") as server:
        yield server


def exported(folder: Path, out: Path, kind: str) -> Path:
    from llmkit.gguf.convert import export

    export(folder, out, type=kind, template=(folder / "chat_template.jinja").read_text("utf-8"), name="real", metadata={})
    return out


@pytest.fixture(scope="module")
def tiny_chat(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with ChatML as its own template."""
    folder = tmp_path_factory.mktemp("tiny-chat") / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copy(CHATML, folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module", params=["gguf", "model"])
def server(request: pytest.FixtureRequest, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Before each runtime, with the same tiny model."""
    path = tiny_chat
    if request.param == "gguf":
        path = exported(tiny_chat, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "f32")
    with real(path, context=512, parallel=4) as running:
        yield running


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def ask(one: openai.OpenAI, question: str, **more: Any) -> Any:
    given = {"max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": question}], **more}
    return one.chat.completions.create(model="real", **given)


def streamed(one: openai.OpenAI, question: str, **more: Any) -> tuple[str, str, Any]:
    """(text, finish reason, usage)."""
    chunks = list(ask(one, question, stream=True, stream_options={"include_usage": True}, **more))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks[-2].choices[0].finish_reason, chunks[-1].usage


def check_streams(server: Server) -> None:
    """A stream says what a whole answer says, counts the same, and stops."""
    with client(server) as one:
        for question in QUESTIONS:
            whole = ask(one, question)
            text, finish, usage = streamed(one, question)
            assert text == whole.choices[0].message.content
            assert finish == whole.choices[0].finish_reason
            assert usage == whole.usage
            assert 1 <= usage.completion_tokens <= 24
            middle = text[len(text) // 2 :][:2]
            if middle:
                assert streamed(one, question, stop=[middle])[:2] == (text[: text.index(middle)], "stop")


def check_crowd(server: Server) -> None:
    """32 clients at once, four requests each, half of them streams."""

    def talk(number: int) -> list[int]:
        with client(server) as one:
            questions = [f"{number}: {question}" for question in QUESTIONS]
            whole = [ask(one, question).usage.completion_tokens for question in questions[:2]]
            return whole + [streamed(one, question)[2].completion_tokens for question in questions[2:]]

    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        counts = [count for counts in clients.map(talk, range(32)) for count in counts]
    assert len(counts) == 128
    assert all(1 <= count <= 24 for count in counts)
    eventually(lambda: "answers_running 0" in server.request("/metrics")[1])


def test_a_stream_says_what_a_whole_answer_says_and_stops(server: Server) -> None:
    check_streams(server)


def test_32_clients_ask_four_times_each(server: Server) -> None:
    check_crowd(server)


def test_a_prompt_over_the_context_and_one_that_leaves_no_room_are_refused(server: Server) -> None:
    with client(server) as one:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(one, "hello " * 1000)
        assert caught.value.code == "context_length_exceeded"
        found = one.completions.create(model="real", prompt="你" * 100, max_tokens=1000, temperature=0)
        assert found.usage
        assert found.usage.total_tokens <= 512


def test_an_empty_prompt_is_answered_or_refused(server: Server) -> None:
    status, found, _ = server.request("/v1/completions", {"prompt": "", "max_tokens": 4})
    assert status in (200, 400), found


def test_the_same_seed_says_the_same_alone(server: Server) -> None:
    with client(server) as one:
        first = ask(one, QUESTIONS[0], temperature=1, seed=7).choices[0].message.content
        assert ask(one, QUESTIONS[0], temperature=1, seed=7).choices[0].message.content == first


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    with client(server) as one:
        for _ in range(8):  # twice as many as there are slots
            with ask(one, QUESTIONS[3], stream=True, max_tokens=400) as stream:
                next(iter(stream))
        eventually(lambda: "answers_running 0" in server.request("/metrics")[1])
        assert ask(one, QUESTIONS[0]).usage.completion_tokens >= 1


def test_a_server_that_ends_in_mid_answer_ends_its_clients(tiny_chat: Path) -> None:
    with (
        real(tiny_chat, context=512, parallel=2) as server,
        client(server) as one,
        ask(one, QUESTIONS[0], stream=True, max_tokens=400) as stream,
    ):
        next(iter(stream))
        server.stop.ask()
        server.stop.ask()
        assert server.end().cut == 1
        with pytest.raises(openai.APIError):
            list(stream)


def test_the_command_says_where_serves_and_ends_by_a_signal(tiny_chat: Path, tmp_path: Path) -> None:
    path = exported(tiny_chat, tmp_path / "tiny.gguf", "f32")
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "serve",
        str(path),
        "--port",
        "0",
        "--context",
        "512",
        "--parallel",
        "2",
        "--json",
    ]
    environment = {**os.environ, "LLMKIT_API_KEY": "sesame"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout
            ready = json.loads(process.stdout.readline())
            assert (ready["event"], ready["model"], ready["context"], ready["parallel"]) == ("ready", "tiny", 512, 2)
            with openai.OpenAI(base_url=ready["url"], api_key="sesame", max_retries=0) as one:
                messages: Any = [{"role": "user", "content": "a secret question"}]
                given: Any = {"model": "tiny", "messages": messages, "max_tokens": 300}
                with one.chat.completions.create(stream=True, **given) as stream:
                    next(iter(stream))
                    os.killpg(process.pid, signal.SIGTERM)  # as systemd does: to llama.cpp's process too
                    assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    ended = json.loads(out)
    assert (ended["event"], ended["requests"]) == ("ended", {"200": 1})
    assert "/v1/chat/completions 200" in err
    assert "secret" not in err


def test_the_command_refuses_other_machines_without_a_key_before_it_loads(tiny_chat: Path) -> None:
    command = [sys.executable, "-m", "llmkit", "serve", str(tiny_chat), "--port", "0", "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "LLMKIT_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    assert "LK0831" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q8_0", "f32"])
def test_a_real_gguf_serves_a_crowd(smollm2: Path, tmp_path: Path, kind: str) -> None:
    with real(exported(smollm2, tmp_path / "smollm2.gguf", kind), context=1024, parallel=8) as server:
        check_streams(server)
        check_crowd(server)


@pytest.mark.slow
def test_a_real_model_serves_a_crowd(smollm2: Path) -> None:
    with real(smollm2, context=1024, parallel=8) as server:
        check_streams(server)
        check_crowd(server)
