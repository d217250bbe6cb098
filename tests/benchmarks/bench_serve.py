"""How many tokens a second `llmkit serve` makes for 32 clients at once beside one alone, in one run.

    python tests/benchmarks/bench_serve.py [ARTIFACT…]        # default: SmolLM2 135M as GGUF f32 and q8_0, and as a folder

Each client streams its answers over a connection of its own: 32 tokens, greedy, to questions that are all different. One client
and 32 take turns, so that a busy machine slows both alike; the best of each counts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

CLIENTS = 32
REQUESTS = 1  # of each of many clients; one alone asks four
ROUNDS = 2
TOKENS = 32
SEED = 1
BAR = 2.0


@contextmanager
def served(artifact: Path) -> Iterator[dict[str, object]]:
    """`llmkit serve`, as its first line of JSON tells it."""
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "serve",
        str(artifact),
        "--port",
        "0",
        "--json",
        "-q",
    ]
    with subprocess.Popen([*command, "--context", "512"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


def ask(url: str, number: int) -> int:
    """The tokens of one streamed answer."""
    address = urlsplit(url)
    assert address.hostname
    connection = HTTPConnection(address.hostname, address.port, timeout=600)
    body = {
        "messages": [{"role": "user", "content": f"Tell me a story about the number {number}, in many words."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection.request("POST", f"{address.path}/chat/completions", json.dumps(body))
    events = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    assert events[-2] == "data: [DONE]", events
    return int(json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"])


def rate(url: str, *, clients: int, requests: int, numbers: Iterator[int]) -> float:
    """Tokens a second of all clients together."""
    asked = [next(numbers) for _ in range(clients * requests)]
    start = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(lambda number: ask(url, number), asked))
    return tokens / (perf_counter() - start)


def measure(artifact: Path) -> None:
    numbers = count(SEED)
    with served(artifact) as ready:
        url = str(ready["url"])
        rate(url, clients=1, requests=1, numbers=numbers)  # what is slow once alone
        alone, crowd = [], []
        for _ in range(ROUNDS):
            alone.append(rate(url, clients=1, requests=4, numbers=numbers))
            crowd.append(rate(url, clients=CLIENTS, requests=REQUESTS, numbers=numbers))
    ratio = max(crowd) / max(alone)
    told = "" if ratio >= BAR else f"  below {BAR}"
    name = f"{artifact.name} ({ready['runtime']}, {ready['parallel']} at once)"
    print(
        f"{name:<60} 1 client {max(alone):>7.1f} tok/s  {CLIENTS} clients {max(crowd):>7.1f}  ratio {ratio:.2f}{told}",
        flush=True,
    )


def examples(folder: Path) -> list[Path]:
    from llmkit import origin
    from llmkit.gguf.convert import export

    found = origin.model("demo:smollm2-135m")
    model = (found.ready or found.fetch()).path
    template = (model / "chat_template.jinja").read_text("utf-8")
    made = []
    for kind in ("f32", "q8_0"):
        made.append(folder / f"smollm2-{kind}.gguf")
        export(model, made[-1], type=kind, template=template, name="smollm2", metadata={})
    return [*made, model]


if __name__ == "__main__":
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        for one in [Path(given) for given in sys.argv[1:]] or examples(Path(name)):
            measure(one)
