"""Where a config.json comes from, and that none is trusted."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.errors import DataError, LlmkitError, MachineError, UsageError
from llmkit.gguf import convert
from llmkit.planning import config, shapes
from tests.planning.shared import copy_of


def test_a_folder_its_config_and_its_gguf_describe_one_model(tiny_model: Path, tmp_path: Path) -> None:
    convert.export(tiny_model, tmp_path / "tiny.gguf", type="q8_0", template="", name="tiny")
    given = (tiny_model, tiny_model / "config.json", tmp_path / "tiny.gguf")
    found = [shapes.of_config(config.find(str(one)).raw, where="here") for one in given]
    assert len({one.parameters for one in found}) == 1
    assert len({one.windows for one in found}) == 1


@pytest.mark.parametrize("name", [*sorted(config.COPIES), "modelscope:LLM-Research/gemma-2-9b-it"])
def test_a_known_model_is_planned_without_a_network_and_it_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    found = config.find(name)
    assert "llmkit's own copy" in found.where
    assert not found.here
    shapes.of_config(found.raw, where=name)


def test_an_unknown_model_without_a_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    started = time.perf_counter()
    with pytest.raises(MachineError) as caught:
        config.find("nobody/nothing")
    assert "config.json" in caught.value.next
    assert time.perf_counter() - started < 10  # huggingface_hub alone retries for 23 s


@pytest.mark.parametrize("name", ["", "nothing", "./nowhere", "a/b/c", "modelscope:x", "demo:none"])
def test_what_names_nothing_is_a_usage_error(name: str) -> None:
    with pytest.raises((UsageError, DataError)) as caught:
        config.find(name)
    assert caught.value.what


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b'{"a":' * 50_000, b"nope"])
def test_a_file_that_is_no_config_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(LlmkitError) as caught:
        config.find(str(tmp_path / "config.json"))
    assert caught.value.code == "LK0951"


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(DataError):
        config.find(str(tmp_path / "config.json"))


def test_the_hub_gives_its_config_in_one_request(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}")
    found = config.find("somebody/something@v1")
    assert found.raw["vocab_size"] == copy_of("Qwen3-0.6B")["vocab_size"]
    assert "from the hub" in found.where


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub with one model."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/somebody/something/resolve/v1/config.json"
            body = json.dumps(copy_of("Qwen3-0.6B")).encode() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
