"""The hubs: what is fetched through a mirror is what it holds, and each refusal is told with its remedy."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit import artifact, origin
from llmkit.errors import DataError, LlmkitError
from tests import hub_stub
from tests.hub_stub import TOKEN, Handler, Hub

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": os.urandom(300_000),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"raise SystemExit",
    "sub/extra.safetensors": b"more",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hub_stub.serving() as made:
        hub_stub.use(made, monkeypatch, str(tmp_path / "hub"))
        yield made


def refused(reference: str) -> LlmkitError:
    with pytest.raises(LlmkitError) as caught:
        origin.model(reference).fetch()
    return caught.value


def test_a_model_comes_through_the_mirror_byte_for_byte_and_without_pickles_or_scripts(hub: Hub) -> None:
    hub.add("own/er", MODEL)
    found = origin.model("own/er")
    assert found.ready is None
    made = found.fetch()
    assert set(made.manifest.files) == {"config.json", "model.safetensors", "tokenizer.json", "sub/extra.safetensors"}
    assert {name: (made.path / name).read_bytes() for name in made.manifest.files}.items() <= MODEL.items()
    hub.requests.clear()
    again = origin.model("own/er")
    assert again.ready is not None
    assert again.ready.fingerprint == made.fingerprint
    assert hub.requests == []


def test_a_download_that_was_cut_goes_on_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # bytes; it keeps whole pieces
    hub.add("own/er", MODEL)
    cut: list[str] = []

    def halve(method: str, path: str, handler: Handler) -> bool:
        if method != "GET" or not path.endswith("/model.safetensors") or cut:
            return False
        cut.append(path)
        data = MODEL["model.safetensors"]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:100_000])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    hub.trouble = halve
    made = origin.model("own/er").fetch()
    assert cut
    assert (made.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert hub.ranges == ["bytes=100000-"], "the rest alone was asked for"


def test_what_the_hub_changed_is_fetched_and_what_it_kept_is_not(hub: Hub, tmp_path: Path) -> None:
    repository = hub.add("own/er", MODEL)
    before = origin.model("own/er").fetch()
    repository.files["config.json"] = b'{"model_type": "llama", "changed": 1}'
    hub.requests.clear()
    from llmkit.hubs import Repo, huggingface

    folder = huggingface.snapshot(Repo("own/er", "main", "model", "model", ""), origin.HUB_FILES, local=False)
    assert folder is not None
    assert (folder / "config.json").read_bytes() == repository.files["config.json"]
    fetched = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert [path.rpartition("/")[2] for path in fetched] == ["config.json"]
    assert before.path != folder


def test_a_private_model_needs_the_token_and_gets_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("own/er", MODEL, private=True)
    error = refused("own/er")
    assert (error.code, error.exit_code) == ("LK0351", 2)
    assert "hf auth login" in error.next
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert origin.model("own/er").fetch().fingerprint


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_model_says_where_its_licence_is_accepted(hub: Hub, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("google/gemma-2-9b-it", MODEL, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refused("google/gemma-2-9b-it")
    assert (error.code, error.exit_code, error.where) == ("LK0353", 3, "model: google/gemma-2-9b-it")
    assert "https://huggingface.co/google/gemma-2-9b-it" in error.next
    assert ("hf auth login" in error.next) == (token is None)


DATA = {
    "data/train.parquet": b"PAR1",
    "a.csv": b"a",
    "LICENSE": b"MIT",
    "er.py": b"raise SystemExit",
    "b.pkl": b"x",
    "c.bin": b"x",
}


def test_a_data_set_is_fetched_as_data_alone(hub: Hub) -> None:
    hub.add("own/er", DATA, repo_type="dataset")
    assert origin.source("hub:own/er").ready is None
    made = origin.source("hub:own/er").fetch()
    assert set(made.manifest.files) == {"data/train.parquet", "a.csv", "LICENSE"}
    hub.add("own/code", {"er.py": b"raise SystemExit"}, repo_type="dataset")
    with pytest.raises(DataError, match="this data set holds no file that is safe to read") as caught:
        origin.source("hub:own/code").fetch()
    assert "never run" in caught.value.next
    with pytest.raises(DataError, match="there is no such data set") as caught:
        origin.source("hub:own/eer").fetch()
    assert (caught.value.where, caught.value.exit_code) == ("data.sources: hub:own/eer", 2)
    assert "did you mean own/er?" in caught.value.next


def test_a_misspelt_model_is_told_what_its_owner_has(hub: Hub) -> None:
    hub.add("google/gemma-2-9b-it", MODEL)
    hub.add("google/siglip", MODEL)
    error = refused("google/gemma2-9b-it")
    assert isinstance(error, DataError)
    assert "did you mean google/gemma-2-9b-it?" in error.next
    hub.add("meta/llama-3", MODEL)
    assert "did you mean meta/llama-3?" in refused("mata/llama-3").next


def test_a_revision_that_is_not_there_is_named(hub: Hub) -> None:
    hub.add("own/er", MODEL)
    error = refused("own/er@v9")
    assert error.code == "LK0352"
    assert "no revision v9" in error.what


def test_a_token_that_the_hub_refuses_is_told_and_never_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("own/er", MODEL, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_an_old_secret")
    error = refused("own/er")
    assert error.code == "LK0354"
    assert "hf_an_old_secret" not in f"{error.what}{error.where}{error.next}"


@pytest.mark.parametrize("status", [500, 502])
def test_a_hub_that_fails_is_not_taken_for_a_missing_model(hub: Hub, status: int) -> None:
    hub.add("own/er", MODEL)

    def fail(method: str, path: str, handler: Handler) -> bool:
        handler.refuse(status, message="we are on fire")
        return True

    hub.trouble = fail
    error = refused("own/er")
    assert error.code == "LK0356"
    assert "on fire" in error.what


def test_a_mirror_that_is_no_hub_is_a_failure_and_no_traceback(hub: Hub) -> None:
    def chatter(method: str, path: str, handler: Handler) -> bool:
        handler.send(200, b"<html>please log in to the hotel's network</html>", {"Content-Type": "text/html"})
        return True

    hub.trouble = chatter
    assert refused("own/er").code == "LK0356"


def test_a_hub_that_says_nothing_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from llmkit.hubs import huggingface

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setitem(huggingface._BOUNDS, "read", 0.3)
        started = time.monotonic()
        error = refused("own/er")
    assert error.code == "LK0355"
    assert time.monotonic() - started < 5


def test_a_disk_of_ours_that_fails_is_not_blamed_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.add("own/er", MODEL)
    (tmp_path / "hub").write_text("a file where the cache should be")
    with pytest.raises(OSError, match="hub") as caught:
        origin.model("own/er").fetch()
    assert caught.value.filename


def command(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, str, float]:
    """The whole program in a process of its own: exit code, stderr, seconds."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env = {**clean, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), **environment}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr, time.monotonic() - started


def a_recipe(tmp_path: Path, model: str) -> None:
    chat = '{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a%d"}]}'
    (tmp_path / "a.jsonl").write_text("\n".join(chat % (n, n * 7919) for n in range(40)))
    rest = "data: {sources: [{path: a.jsonl}]}, clean: {min_turns: 2}, finetune: {max_steps: 2}"
    (tmp_path / "r.yaml").write_text(f"{{name: m, model: '{model}', {rest}}}")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_a_model_that_is_not_here_fails_at_once_with_the_remedy(tmp_path: Path, variable: str) -> None:
    a_recipe(tmp_path, "google/gemma-2-9b-it")
    code, err, seconds = command(tmp_path, "run", "r.yaml", **{variable: "1"})
    assert code == 3
    assert f"{variable}=1 forbids downloading it" in err
    assert f"unset {variable}" in err
    assert "hf download google/gemma-2-9b-it" in err
    assert seconds < 2 * max(1.0, os.getloadavg()[0] / 2), "well under 2 s on a quiet machine"


def test_the_whole_program_downloads_through_hf_endpoint(tmp_path: Path) -> None:
    with hub_stub.serving() as hub:
        hub.add("own/er", MODEL)
        a_recipe(tmp_path, "own/er")
        code, err, _ = command(tmp_path, "run", "r.yaml", HF_ENDPOINT=hub.address, HF_HUB_DISABLE_XET="1")
    # The stub's weights are noise: what matters is that they came, and that llmkit went on to read them.
    assert "downloading own/er" in err
    assert code != 0
    got = {path.name: path.read_bytes() for path in (tmp_path / "hf").rglob("*.safetensors")}
    assert got == {"model.safetensors": MODEL["model.safetensors"], "extra.safetensors": MODEL["sub/extra.safetensors"]}


def test_without_a_network_it_fails_at_once_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    a_recipe(tmp_path, "own/er")
    code, err, seconds = command(tmp_path, "run", "r.yaml", HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert code == 3
    assert "the hub cannot be reached" in err
    assert "modelscope:OWNER/NAME" in err
    assert seconds < 10


def test_a_model_of_the_hub_is_as_ready_as_any_other(hub: Hub) -> None:
    hub.add("own/er", MODEL)
    made = origin.model("own/er").fetch()
    assert made.manifest.config["origin"] == "own/er"
    assert artifact.digest("foreign", made.manifest.kind, made.manifest.files) == made.fingerprint
