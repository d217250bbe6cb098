"""A signal in the middle of answers."""

import concurrent.futures
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmkit.serve.http import running
from tests.serve.served import Echo, chat, eventually, serving

ROOT = Path(__file__).parents[2]
TEXT = "a text of thirty characters ok"


@contextmanager
def program(*, drain_seconds: float = 30.0) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A server of two answers at once, 0.6 s each, as (process, host, port)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.served", str(drain_seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        address = urlsplit(process.stdout.readline())
        assert address.hostname
        assert address.port
        yield process, address.hostname, address.port
    finally:
        process.kill()
        process.wait()


def ask(host: str, port: int, *, stream: bool, begun: threading.Semaphore) -> str:
    """All that comes; `begun` is told once the request is sent."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(TEXT, stream=stream)))
    begun.release()
    return connection.getresponse().read().decode()


def in_flight(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/metrics")
    return next(
        line for line in connection.getresponse().read().decode().splitlines() if line.startswith("llmkit_requests_in_flight")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_accepted_request_is_answered_after_a_signal_in_mid_stream(number: signal.Signals) -> None:
    begun = threading.Semaphore(0)
    with program() as (process, host, port), concurrent.futures.ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(ask, host, port, stream=index % 2 == 0, begun=begun) for index in range(8)]
        for _ in answers:
            begun.acquire()
        eventually(lambda: in_flight(host, port).endswith(" 8"))  # two run, six wait
        process.send_signal(number)
        time.sleep(0.3)
        late = http.client.HTTPConnection(host, port, timeout=30)
        late.request("POST", "/v1/chat/completions", json.dumps(chat("too late")))
        refused = late.getresponse()
        assert (refused.status, refused.getheader("connection"), bool(refused.getheader("retry-after"))) == (503, "close", True)
        assert json.loads(refused.read())["error"]["code"] == "draining"
        for index, answer in enumerate(answers):
            text = answer.result(timeout=30)
            assert text.endswith("data: [DONE]\n\n") if index % 2 == 0 else TEXT in text
        assert process.wait(timeout=10) == 0
        assert process.stdout
        assert json.loads(process.stdout.read()) == {"cut": 0}


@pytest.mark.parametrize(("drain_seconds", "signals"), [(30.0, 2), (0.2, 1)])
def test_a_second_signal_or_the_end_of_its_time_drops_the_rest(drain_seconds: float, signals: int) -> None:
    begun = threading.Semaphore(0)
    with program(drain_seconds=drain_seconds) as (process, host, port), concurrent.futures.ThreadPoolExecutor(16) as clients:
        answers = [clients.submit(ask, host, port, stream=True, begun=begun) for _ in range(16)]  # 4.8 s of work
        for _ in answers:
            begun.acquire()
        eventually(lambda: in_flight(host, port).endswith(" 16"))
        started = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - started < 4.5
        assert process.stdout
        assert json.loads(process.stdout.read())["cut"] > 0
        assert sum(answer.exception(timeout=10) is not None for answer in answers) > 0


def test_health_tells_that_it_drains_until_the_last_answer() -> None:
    with serving(Echo(pause=0.05)) as server, concurrent.futures.ThreadPoolExecutor(1) as client:
        answer = client.submit(server.chat, TEXT)
        eventually(lambda: server.speaker.running)
        server.stop.ask()
        eventually(lambda: server.request("/health")[:2] == (503, {"status": "draining"}))
        assert answer.result(timeout=30)[0] == 200
        assert server.end().cut == 0


def test_health_tells_that_the_model_is_loading_and_a_signal_ends_that() -> None:
    script = """
import contextlib, sys, time
from llmkit.serve.http import running, listening
from tests.serve.served import Echo
real = listening.url
def told(*given):
    print(real(*given), flush=True)
    return real(*given)
listening.url = told
@contextlib.contextmanager
def slow():
    time.sleep(60)
    yield Echo()
stop = running.Stop()
with running.signals(stop):
    try:
        running.serve(slow, running.Settings(port=0), ready=print, stop=stop)
    except running.StoppedError:
        print("stopped", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = urlsplit(process.stdout.readline())
        assert address.hostname
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        for path, status in {"/health": 503, "/v1/models": 503}.items():
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == status
            assert "loading" in response.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stdout.read().strip() == "stopped"
    finally:
        process.kill()
        process.wait()


def test_a_model_that_does_not_load_ends_the_server() -> None:
    def fail() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        running.serve(fail, running.Settings(port=0), ready=print, stop=running.Stop())  # type: ignore[arg-type]
