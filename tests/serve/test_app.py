"""The server as any client of HTTP sees it."""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import MachineError
from llmkit.serve.http import listening, running
from llmkit.serve.speaker import Wish
from tests.serve.served import Echo, Server, chat, eventually, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Echo()) as running:
        yield running


def events(server: Server, body: object, path: str = "/v1/chat/completions") -> list[Any]:
    """The JSON of a stream's events; the last is the string [DONE] where the stream is whole."""
    status, text, headers = server.request(path, body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line[6:] != "[DONE]" else "[DONE]" for line in lines]


def said(found: list[Any], index: int = 0) -> str:
    parts = [
        choice["delta"].get("content", "")
        for one in found
        if one != "[DONE]"
        for choice in one["choices"]
        if choice["index"] == index
    ]
    return "".join(parts)


def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    whole = server.chat("你好, 👋 hello", seed=1)[1]
    found = events(server, chat("你好, 👋 hello", seed=1, stream=True))
    assert said(found) == whole["choices"][0]["message"]["content"] == "你好, 👋 hello"
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [one["choices"][0]["finish_reason"] for one in found[:-1]][-1] == "stop"
    assert found[-1] == "[DONE]"
    assert all("usage" not in one for one in found[:-1])


def test_usage_comes_last_where_it_is_asked_for(server: Server) -> None:
    found = events(server, chat("hello", stream=True, stream_options={"include_usage": True}))
    assert [one["usage"] for one in found[:-2]] == [None] * (len(found) - 2)
    assert found[-2]["choices"] == []
    assert (
        found[-2]["usage"]
        == server.chat("hello")[1]["usage"]
        == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    )


def test_choices_are_told_apart_and_have_seeds_of_their_own(server: Server) -> None:
    body = chat("hi", temperature=1, seed=5, n=3)
    whole = [choice["message"]["content"] for choice in server.request("/v1/chat/completions", body)[1]["choices"]]
    found = events(server, {**body, "stream": True})
    assert whole == [said(found, index) for index in range(3)] == ["hi#5", "hi#6", "hi#7"]


def test_plain_completions_answer_every_prompt(server: Server) -> None:
    body = {"prompt": ["ab", "cde"], "n": 2, "temperature": 0, "max_tokens": 2}
    status, found, _ = server.request("/v1/completions", body)
    assert status == 200
    assert found["object"] == "text_completion"
    assert [(one["index"], one["text"], one["finish_reason"]) for one in found["choices"]] == [
        (0, "ab", "stop"),
        (1, "ab", "stop"),
        (2, "cd", "length"),
        (3, "cd", "length"),
    ]
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    streamed = events(server, {**body, "stream": True}, "/v1/completions")
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1] if one["choices"][0]["index"] == 2) == "cd"


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(server: Server) -> None:
    for body in (chat("one END two", stop="END"), chat("one END two", stop=["xx", "END"])):
        choice = server.request("/v1/chat/completions", body)[1]["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
        assert said(events(server, {**body, "stream": True})) == "one "


def test_an_answer_has_no_more_tokens_than_the_smallest_of_three_limits() -> None:
    speaker = Echo(context=30)
    with serving(speaker, max_tokens=8) as server:
        assert server.chat("a" * 20)[1]["usage"]["completion_tokens"] == 8  # the server's
        assert server.chat("a" * 20, max_tokens=3)[1]["usage"]["completion_tokens"] == 3  # the client's
        assert server.chat("a" * 20, max_tokens=1000)[1]["choices"][0]["finish_reason"] == "length"
        assert server.chat("a" * 25)[1]["usage"]["completion_tokens"] == 5  # the context's
        status, found, _ = server.chat("a" * 30)
        assert (status, found["error"]["code"], found["error"]["param"]) == (400, "context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", {"messages": [], "model": "echo"}, 400, "invalid_value"),
        ("/v1/chat/completions", {}, 400, "missing_required_parameter"),
        ("/v1/chat/completions", chat("refuse"), 400, "invalid_value"),
        ("/v1/chat/completions", chat("x", tools=[{}]), 400, "unsupported_parameter"),
        ("/v1/chat/completions", {**chat("x"), "model": "gpt-5"}, 404, "model_not_found"),
        ("/v1/chat/completions", chat("fail"), 500, "LK0001"),
        ("/v1/chat/completions", None, 405, None),
        ("/v1/models/other", None, 404, "model_not_found"),
        ("/v1/embeddings", {}, 404, None),
    ],
)
def test_an_error_has_the_shape_and_status_of_openai(server: Server, path: str, body: object, status: int, code: str) -> None:
    found = server.request(path, body)
    assert found[0] == status
    error = found[1]["error"]
    assert error["code"] == code
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_a_runtime_that_fails_in_mid_stream_ends_the_stream_with_an_error(server: Server) -> None:
    found = events(server, chat("fail", stream=True))
    assert said(found[:-1]) == "fai"
    assert found[-1]["error"]["code"] == "LK0001"


def test_models_are_listed_and_found_by_names_with_slashes() -> None:
    with serving(Echo(), name="me/echo:1") as server:
        assert [one["id"] for one in server.request("/v1/models")[1]["data"]] == ["me/echo:1"]
        assert server.request("/v1/models/me/echo:1")[1]["id"] == "me/echo:1"
        assert server.request("/v1/chat/completions", {**chat("x"), "model": "me/echo:1"})[0] == 200
        assert server.chat("x")[0] == 404


def test_an_answer_that_fails_is_no_failing_server(server: Server) -> None:
    assert server.chat("fail")[0] == 500
    assert server.request("/health")[:2] == (200, {"status": "ok"})


def test_a_runtime_that_ends_ends_the_server_so_that_another_is_started() -> None:
    speaker, stop = Echo(), running.Stop()
    health = []

    def ready(now: running.Ready) -> None:
        speaker.dead = True
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(now.url.removesuffix("v1") + "health", timeout=10)
        health.append((caught.value.code, json.load(caught.value)))

    threading.Timer(20, stop.ask).start()
    with pytest.raises(MachineError, match="runtime has ended"):
        running.serve(lambda: contextlib.closing(speaker), running.Settings(port=0), ready=ready, stop=stop)
    assert health == [(503, {"status": "failing"})]


def test_a_prompt_that_cannot_fit_is_not_even_tokenized() -> None:
    with serving(Echo(context=30)) as other:
        other.speaker.count = lambda prompt: pytest.fail("it was tokenized")
        for path, body in (("chat/completions", chat(" " * 3000)), ("completions", {"prompt": " " * 3000})):
            status, found, _ = other.request(f"/v1/{path}", body)
            assert (status, found["error"]["code"]) == (400, "context_length_exceeded")


def test_a_body_over_the_limit_is_refused(server: Server) -> None:
    assert server.chat("x" * (5 << 20))[0] == 413


def test_as_many_are_answered_at_once_as_the_model_takes_and_the_rest_wait_their_turn() -> None:
    speaker = Echo(parallel=2, pause=0.02)
    with serving(speaker, queue=4) as server, contextlib.ExitStack() as clients:
        begun = [clients.enter_context(streaming(server, "abcdefghij")) for _ in range(6)]
        eventually(lambda: "answers_waiting 4" in server.request("/metrics")[1])
        status, found, headers = server.chat("one too many")
        assert (status, found["error"]["type"], int(headers["retry-after"]) >= 1) == (429, "rate_limit_error", True)
        assert all("[DONE]" in client.getresponse().read().decode() for client in begun)
        assert server.chat("now")[0] == 200
    assert speaker.most_running == 2


@contextlib.contextmanager
def streaming(server: Server, text: str) -> Iterator[http.client.HTTPConnection]:
    """A stream that is asked for and not read yet."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(chat(text, stream=True)))
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(stream: bool) -> None:
    speaker = Echo(parallel=1, pause=0.05)
    with serving(speaker) as server:
        for _ in range(2):  # one that is answered, one that waits
            connection = http.client.HTTPConnection(*server.address, timeout=30)
            connection.request("POST", "/v1/chat/completions", json.dumps(chat("x" * 1000, stream=stream)))
            eventually(lambda: speaker.made)
            connection.close()
        started = time.monotonic()
        assert server.chat("hi")[0] == 200
        assert time.monotonic() - started < 10
        assert speaker.made < 500
        assert 'status="499"' in server.request("/metrics")[1] or stream
        eventually(lambda: "requests_in_flight 0" in server.request("/metrics")[1])


def bind_with_small_buffer(host: str, port: int, *, key: str | None, real: Any = listening.bind) -> socket.socket:
    """Some systems keep megabytes for a reader."""
    listener: socket.socket = real(host, port, key=key)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener


def test_a_client_that_does_not_read_holds_up_nobody_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(listening._PATIENCE, "stalled", 0.3)
    monkeypatch.setattr(listening, "bind", bind_with_small_buffer)
    speaker = Echo(parallel=1, context=10**7, size=10_000)
    with serving(speaker, max_tokens=10**7) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(server.address)
        body = json.dumps(chat("x" * 1_000_000, n=2)).encode()
        deaf.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        eventually(lambda: speaker.made == 2_000_000)
        assert server.chat("hi")[1]["choices"][0]["message"]["content"] == "hi"
        eventually(lambda: "requests_in_flight 0" in server.request("/metrics")[1])
        time.sleep(1)  # longer than it may stall
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := deaf.recv(1 << 20):
                received += len(part)
        assert received < 2_000_000


def test_a_connection_that_never_asks_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(listening._PATIENCE, "idle", 0.3)
    with serving(Echo(pause=0.1)) as server:
        for sent in (b"", b"POST /v1/comple", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"):
            with socket.create_connection(server.address, timeout=5) as mute:
                mute.sendall(sent)
                with contextlib.suppress(ConnectionError):
                    while mute.recv(4096):
                        pass
        assert server.chat("longer than that")[0] == 200  # a slow answer is not idle


def test_metrics_count_requests_and_tokens() -> None:
    with serving(Echo()) as server:
        server.chat("hello")
        server.chat("hello", max_tokens=2, stream=True)
        server.request("/v1/nowhere/private", {})
        text = server.request("/metrics")[1]
    assert 'llmkit_requests_total{route="/v1/chat/completions",status="200"} 2' in text
    assert 'llmkit_requests_total{route="other",status="404"} 1' in text
    assert "llmkit_prompt_tokens_total 10\n" in text
    assert "llmkit_generated_tokens_total 7\n" in text
    assert 'llmkit_time_to_first_token_seconds_bucket{le="+Inf"} 2' in text
    assert "private" not in text


def test_sensitive_words_are_refused_in_and_kept_out(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("坏蛋\nclass war\n", "utf-8")

    class Rude(Echo):
        def speak(self, prompt: str, wish: Wish) -> Any:
            return super().speak(f"{prompt} 你这个坏蛋！", wish)

    with serving(Rude(), sensitive=[tmp_path / "words.txt"]) as server:
        status, found, _ = server.chat("坏蛋")
        assert (status, found["error"]["code"]) == (400, "content_filter")
        choice = server.chat("class wars")[1]["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("class wars 你这个", "content_filter")
        found = events(server, chat("hello", stream=True))
        assert said(found) == "hello 你这个"
        assert found[-2]["choices"][0]["finish_reason"] == "content_filter"
        eventually(lambda: server.speaker.running == 0)


def test_broken_requests_leave_the_server_well(server: Server) -> None:
    for sent in (
        b"\x16\x03\x01\x02",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
    ):
        with socket.create_connection(server.address, timeout=5) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while raw.recv(4096):
                    pass
    assert server.chat("still here")[0] == 200
