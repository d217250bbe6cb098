"""An endpoint may misbehave in any way: the sample fails, or the run does, and neither hangs."""

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit import endpoint
from llmkit.answers import Decoding, Store
from llmkit.endpoint import Endpoint, answer_many
from llmkit.errors import MachineError, UsageError
from llmkit.gguf.convert import export
from llmkit.gguf.runtime import LlamaServer
from tests.gguf.families import CHATML

SECRET = "sk-secret-0123456789"
GREEDY = Decoding(max_new_tokens=8)
Reply = Callable[["_Handler", Any], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        with self.server.lock:
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        with contextlib.suppress(OSError):  # the other end may have gone
            self.server.reply(self, body)

    def send(self, status: int, body: bytes | object, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        if length is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    reply: Reply

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.seen: list[tuple[str, str | None, Any]] = []

    def handle_error(self, *_: object) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    running = _Server()
    running.reply = lambda handler, body: handler.send(200, said(body["messages"][-1]["content"]))
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def said(text: object, **choice: object) -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": {"completion_tokens": 3}}


def ask(server: _Server, *questions: str, store: Store | None = None, decoding: Decoding = GREEDY, **options: Any) -> Any:
    given = Endpoint(server.url, **{"model": "m", "retries": 2, "timeout": 5.0, **options})
    chats = [[{"role": "user", "content": question}] for question in questions]
    return answer_many(given, chats, decoding=decoding, keys=[f"key {one}" for one in questions], store=store)


def drips(handler: _Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def never_ends(handler: _Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def resets(handler: _Handler, _: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def babbles(handler: _Handler, _: Any) -> None:
    handler.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n")
    handler.close_connection = True


def sends(status: int, body: bytes | object, headers: dict[str, str] | None = None, length: int | None = None) -> Reply:
    return lambda handler, _: handler.send(status, body, headers, length)


WHOLE = json.dumps(said("fine")).encode()
MISBEHAVIOURS: dict[str, tuple[Reply, str]] = {
    "is silent": (lambda *_: time.sleep(2), "no whole answer in 0.5 s"),
    "drips": (drips, "no whole answer in 0.5 s"),
    "never ends": (never_ends, "MiB|no whole answer"),
    "resets": (resets, "connection failed"),
    "babbles": (babbles, "connection failed"),
    "500": (sends(500, {"error": {"message": "out of cheese"}}), "HTTP 500 .*out of cheese"),
    "502": (sends(502, b"<html>Bad Gateway</html>"), "HTTP 502"),
    "503": (sends(503, {"error": "busy"}), "busy"),
    "429": (sends(429, {"detail": "slowly"}), "slowly"),
    "cut short": (sends(200, WHOLE[:-9], length=len(WHOLE)), "cut short"),
    "no JSON": (sends(200, b"{"), "no JSON"),
    "deep JSON": (sends(200, b"[" * 200_000), "no JSON"),
    "a huge number": (sends(200, b"9" * 10_000), "no JSON"),
    "no choices": (sends(200, {"choices": []}), "no chat completion"),
    "an error inside 200": (sends(200, {"error": {"message": "x"}}), "no chat completion"),
    "a number for a text": (sends(200, said(5)), "no chat completion"),
    "a list": (sends(200, [1, 2]), "no chat completion"),
    "null": (sends(200, None), "no chat completion"),
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_sample_whose_tries_all_fail_has_failed_and_the_others_are_answered(name: str, server: _Server) -> None:
    bad, why = MISBEHAVIOURS[name]
    server.reply = lambda handler, body: (
        bad(handler, body) if body["messages"][0]["content"] == "bad" else handler.send(200, said("fine"))
    )
    started = time.monotonic()
    good, failed = ask(server, "good", "bad", timeout=0.5, retries=1)
    assert time.monotonic() - started < 10
    assert (good.text, good.failure) == ("fine", "")
    assert failed.text == ""
    assert re.search(why, failed.failure), failed.failure
    assert [body["messages"][0]["content"] for _, _, body in server.seen].count("bad") == 2


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_what_goes_wrong_once_is_asked_again(name: str, server: _Server) -> None:
    bad, _ = MISBEHAVIOURS[name]
    server.reply = lambda handler, body: bad(handler, body) if len(server.seen) == 1 else handler.send(200, said("fine"))
    [answer] = ask(server, "one", timeout=0.5)
    assert (answer.text, answer.failure, len(server.seen)) == ("fine", "", 2)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 402, 403, 404, 405, 422, 304, 600, 999])
def test_a_refusal_ends_it_at_once_and_names_the_url_but_never_the_key(
    status: int, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    told = {"error": {"message": f"wrong key {SECRET}"}}
    server.reply = sends(status, told, {"Location": "http://127.0.0.1:1/elsewhere"} if status < 400 else {})
    with pytest.raises(UsageError) as caught:
        ask(server, "one", key="A_KEY", parallel=1)
    assert server.url in caught.value.where
    assert SECRET not in f"{caught.value.what}{caught.value.where}{caught.value.next}"
    assert len(server.seen) == 1
    assert server.seen[0][1] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, {"error": {"message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded"}}),
        (400, {"error": {"type": "exceed_context_size_error", "message": "request (9 tokens) exceeds the context size"}}),
        (400, {"error": {"code": "content_filter", "message": "The response was filtered"}}),
        (413, {"detail": "Request too large"}),
    ],
)
def test_a_conversation_that_is_refused_for_itself_fails_alone_and_is_not_asked_again(
    status: int, told: object, server: _Server
) -> None:
    server.reply = lambda handler, body: (
        handler.send(status, told) if body["messages"][0]["content"] == "bad" else handler.send(200, said("fine"))
    )
    good, failed = ask(server, "good", "bad")
    assert (good.text, len(server.seen)) == ("fine", 2)
    assert f"HTTP {status}" in failed.failure


def test_answers_keep_the_order_of_the_conversations_and_no_more_are_asked_at_once_than_allowed(server: _Server) -> None:
    busy, busiest = [], []

    def late(handler: _Handler, body: Any) -> None:
        question = body["messages"][0]["content"]
        busy.append(question)
        busiest.append(len(busy))
        time.sleep(0.05 if int(question) % 3 == 0 else 0.005)
        busy.remove(question)
        handler.send(200, said(question))

    server.reply = late
    questions = [str(number) for number in range(30)]
    found = ask(server, *questions, parallel=3)
    assert [one.text for one in found] == questions
    assert max(busiest) == 3


def test_the_seconds_of_all_answers_are_the_time_that_passed(server: _Server) -> None:
    started = time.perf_counter()
    found = ask(server, *map(str, range(12)))
    assert 0 < sum(one.seconds for one in found) <= time.perf_counter() - started


def test_what_the_store_holds_is_not_asked_again_and_a_failure_is(server: _Server, tmp_path: Path) -> None:
    server.reply = lambda handler, body: (
        handler.send(500, {}) if body["messages"][0]["content"] == "bad" else handler.send(200, said("fine"))
    )
    with Store(tmp_path / "answers.jsonl") as store:
        first = ask(server, "a", "bad", "b", store=store, retries=0)
    server.seen.clear()
    server.reply = sends(200, said("later"))
    with Store(tmp_path / "answers.jsonl") as store:
        second = ask(server, "a", "bad", "b", store=store)
    assert [one.text for one in first] == ["fine", "", "fine"]
    assert [one.text for one in second] == ["fine", "later", "fine"]
    assert len(server.seen) == 1


def test_no_answer_at_all_is_a_machine_error(server: _Server) -> None:
    server.reply = sends(500, {"error": "dead"})
    with pytest.raises(MachineError, match="dead"):
        ask(server, "a", "b", retries=0)


def test_a_dead_endpoint_is_given_up_and_the_answers_before_are_kept(server: _Server, tmp_path: Path) -> None:
    number = itertools.count()
    server.reply = lambda handler, _: handler.send(200, said("x")) if next(number) < 3 else handler.send(503, {})
    with Store(tmp_path / "answers.jsonl") as store:
        with pytest.raises(MachineError, match="in a row"):
            ask(server, *map(str, range(500)), store=store, parallel=2, retries=0)
        assert len(store) == 3
    assert len(server.seen) < 30


def test_nobody_at_the_address_is_a_machine_error(server: _Server) -> None:
    server.server_close()
    with pytest.raises(MachineError, match="connection failed"):
        ask(server, "a", retries=1)


@pytest.mark.parametrize("header", ["1", formatdate(time.time() + 3600, usegmt=True)])
def test_retry_after_is_honoured_within_bounds(header: str, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 0.3)
    server.reply = lambda handler, _: (
        handler.send(429, {}, {"Retry-After": header}) if len(server.seen) == 1 else handler.send(200, said("fine"))
    )
    started = time.monotonic()
    [answer] = ask(server, "a")
    assert answer.text == "fine"
    assert 0.3 <= time.monotonic() - started < 3


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.none(), st.text(max_size=30), st.integers().map(str), st.datetimes().map(lambda d: formatdate(d.year * 1e7)))
)
def test_any_retry_after_gives_a_wait_in_bounds(header: str | None) -> None:
    for attempt in (0, 3, 5000):
        assert 0 < endpoint._wait(attempt, endpoint._retry_after(header)) <= endpoint._LONGEST_WAIT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "usage", "completion_tokens", "refusal"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_json_is_an_answer_or_none(found: Any) -> None:
    try:
        answer = endpoint._completion(found)
    except endpoint._PassingError:
        return
    answer.text.encode()
    assert answer.tokens >= 0


def test_an_answer_of_full_length_has_not_stopped_and_a_lone_surrogate_is_no_text(server: _Server) -> None:
    server.reply = sends(200, json.dumps(said("a\ud83d", finish_reason="length")).encode())
    [answer] = ask(server, "a")
    assert (answer.text, answer.stopped, answer.tokens, answer.log_probability) == ("a?", False, 3, None)


@pytest.mark.parametrize("count", [10**400, -1, True, 2.5, "3", None])
def test_a_count_of_tokens_that_can_be_none_is_none(server: _Server, count: object) -> None:
    found = {"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": count}}
    server.reply = sends(200, found)
    [answer] = ask(server, "a")
    assert (answer.text, answer.tokens) == ("a", 0)


def test_a_refusal_in_place_of_a_content_is_the_answer(server: _Server) -> None:
    message = {"content": None, "refusal": "I can't."}
    server.reply = sends(200, {"choices": [{"message": message, "finish_reason": "stop"}]})
    [answer] = ask(server, "a")
    assert (answer.text, answer.stopped, answer.tokens) == ("I can't.", True, 0)


def test_greedy_asks_for_temperature_0_and_sampling_for_a_seed_of_its_own_for_each_answer(server: _Server) -> None:
    ask(server, "a")
    assert server.seen[0] == (
        "/v1/chat/completions",
        None,
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 8, "temperature": 0.0},
    )
    server.seen.clear()
    sampling = Decoding(8, temperature=0.7, top_p=0.9, seed=5)
    ask(server, "a", "b", decoding=sampling, parallel=1)
    ask(server, "b", "a", decoding=sampling, parallel=1)
    first, second, third, fourth = [body for *_, body in server.seen]
    assert (first["temperature"], first["top_p"]) == (0.7, 0.9)
    assert first["seed"] == fourth["seed"] != second["seed"] == third["seed"]


def test_beams_are_refused(server: _Server) -> None:
    with pytest.raises(UsageError, match="beam"):
        ask(server, "a", decoding=Decoding(8, beams=2))
    assert not server.seen


def test_without_a_model_the_first_that_is_listed_is_asked_once_looked_up(server: _Server) -> None:
    server.reply = lambda handler, body: (
        handler.send(200, {"data": [{"id": "first"}, {"id": "second"}]}) if body is None else handler.send(200, said("x"))
    )
    ask(server, *map(str, range(5)), model=None)
    assert [path for path, _, body in server.seen if body is None] == ["/v1/models"]
    assert {body["model"] for *_, body in server.seen if body} == {"first"}


def test_an_endpoint_that_lists_no_model_is_a_machine_error(server: _Server) -> None:
    server.reply = sends(200, {"data": []})
    with pytest.raises(MachineError, match="model"):
        ask(server, "a", model=None, retries=0)


@pytest.mark.parametrize(
    ("given", "path"),
    [("", "/v1"), ("/", "/v1"), ("/v1/", "/v1"), ("/api/v1", "/api/v1"), ("/v1/chat/completions", "/v1")],
)
def test_a_base_a_bare_host_or_the_whole_address_may_be_given(given: str, path: str, server: _Server) -> None:
    url = server.url.removesuffix("/v1") + given + "?version=1"
    answer_many(Endpoint(url, "m"), [[{"role": "user", "content": "a"}]], decoding=GREEDY, keys=["a"])
    assert server.seen[0][0] == f"{path}/chat/completions?version=1"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:99999", "http://host:x", "http://h\nost", "http://[::1",
     "http://主机/v1", "http://a b/", "file:///etc/passwd", "http://user:sk-secret-0123456789@host/v1"],
)  # fmt: skip
def test_a_url_that_is_none_or_holds_a_password_is_a_usage_error_that_does_not_repeat_it(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint(url)
    assert SECRET not in caught.value.what + caught.value.where + caught.value.next


@pytest.mark.parametrize(
    "options", [{"timeout": 0.0}, {"timeout": float("nan")}, {"timeout": 1e300}, {"retries": -1}, {"parallel": 0}]
)
def test_numbers_out_of_range_are_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Endpoint("http://localhost", **options)


@pytest.mark.parametrize("held", [None, "", "two\nlines", "密"])
def test_a_key_that_is_not_there_is_a_usage_error_before_any_request(
    held: str | None, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("A_KEY", held)
    with pytest.raises(UsageError, match="key"):
        ask(server, "a", key="A_KEY")
    assert not server.seen


def test_the_environment_s_proxy_is_not_used(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ask(server, "a")[0].text == "a"


def test_an_interrupted_run_leaves_no_request_and_no_wait_behind(server: _Server) -> None:
    release = threading.Event()
    server.reply = lambda handler, body: handler.send(401, {}) if body["messages"][0]["content"] == "bad" else release.wait(20)
    started = time.monotonic()
    with pytest.raises(UsageError):
        ask(server, "slow", "slower", "bad", timeout=20.0)
    while any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
        assert time.monotonic() - started < 5
        time.sleep(0.01)
    release.set()


def test_llama_cpp_s_own_server_is_such_an_endpoint(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    export(tiny_model, path, type="f32", template=CHATML, name="tiny", metadata={})
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "你好", "Paris " * 400)]
    with LlamaServer(path, threads=1, context=256) as llama:
        monkeypatch.setenv("LLAMA_KEY", llama._key)
        host, port = llama._address
        given = Endpoint(f"http://{host}:{port}/v1", key="LLAMA_KEY", parallel=2)
        found = answer_many(given, chats, decoding=GREEDY, keys=["1", "2", "3"])
        direct = llama.answer_many(chats, decoding=GREEDY, keys=["1", "2", "3"])
    assert [(one.text, one.tokens, one.stopped) for one in found] == [(one.text, one.tokens, one.stopped) for one in direct]
    assert [bool(one.failure) for one in found] == [False, False, True]
    assert "context" in found[2].failure


def test_a_limit_that_is_known_by_its_newer_name_alone_is_sent_so(server: _Server) -> None:
    def reply(handler: _Handler, body: Any) -> None:
        if "max_tokens" in body:
            message = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            )
            handler.send(400, {"error": {"message": message}})
        else:
            assert body["max_completion_tokens"] == GREEDY.max_new_tokens
            handler.send(200, {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]})

    server.reply = reply
    asked = [[{"role": "user", "content": str(n)}] for n in range(6)]
    found = answer_many(Endpoint(server.url, "m", parallel=3), asked, decoding=GREEDY, keys=[str(n) for n in range(6)])
    assert [one.text for one in found] == ["fine"] * 6
