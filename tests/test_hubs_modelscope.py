"""ModelScope, against a stand-in of its client's documented shape (modelscope_hub 0.5)."""

import socket
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmkit import origin
from llmkit.errors import LlmkitError, MachineError
from llmkit.hubs import Parcel, Repo, modelscope


class HubError(Exception):
    pass


class NotExistError(HubError):
    pass


class AuthenticationError(HubError):
    pass


class PermissionDeniedError(HubError):
    pass


class NetworkError(HubError, ConnectionError):
    pass


class Client:
    """One user's view of a hub that holds folders in memory."""

    repositories: dict[tuple[str, str], dict[str, Any]]
    token: str | None
    trouble: Exception | None

    def whoami(self) -> SimpleNamespace:
        if not self.token:
            raise AuthenticationError("[E3001] no token")
        return SimpleNamespace(username="someone")

    def repo_exists(self, repo_id: str, repo_type: str) -> bool:
        return (repo_type, repo_id) in self.repositories

    def get_repo(self, repo_id: str, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.repositories[repo_type, repo_id]["private"], visibility=None)

    def create_repo(self, repo_id: str, repo_type: str, *, visibility: str, license: str) -> None:
        made = {"private": visibility == "private", "license": license, "files": {"configuration.json": b"{}"}}
        self.repositories[repo_type, repo_id] = made

    def list_repo_files(self, repo_id: str, repo_type: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(path=name, type="blob") for name in self.repositories[repo_type, repo_id]["files"]]

    def upload_folder(
        self, repo_id: str, repo_type: str, folder_path: str, *, commit_message: str, use_cache: bool, disable_tqdm: bool
    ) -> None:
        if self.trouble:
            raise self.trouble
        held = self.repositories[repo_type, repo_id]["files"]
        root = Path(folder_path).resolve()
        held |= {one.relative_to(root).as_posix(): one.read_bytes() for one in root.glob("**/*") if one.is_file()}


class Stand:
    """Installs the stand-in; `download` is what snapshot_download does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = type("HubApi", (Client,), {"repositories": {}, "token": "ms-secret", "trouble": None})
        self.endpoint = ""
        self.download: Callable[..., str] = lambda *arguments, **options: ""
        top = "modelscope_hub"
        names = (top, f"{top}.errors", f"{top}.compat", f"{top}.compat.snapshot_download")
        modules = {name: ModuleType(name) for name in names}
        modules[names[-1]].__dict__.update(snapshot_download=self._snapshot_download)
        kinds = (HubError, NotExistError, AuthenticationError, PermissionDeniedError, NetworkError)
        modules[f"{top}.errors"].__dict__.update({kind.__name__: kind for kind in kinds})
        modules[top].__dict__.update(
            HubApi=self.client,
            Visibility=SimpleNamespace(PRIVATE=1),
            HubConfig=lambda: SimpleNamespace(endpoint=self.endpoint),
            errors=modules[f"{top}.errors"],
            __spec__=ModuleSpec(top, None),
        )
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    def _snapshot_download(self, *arguments: Any, **options: Any) -> str:
        return self.download(*arguments, **options)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Stand(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as someone:
        made.endpoint = f"http://127.0.0.1:{someone.getsockname()[1]}"
        yield made


REPO = Repo("own/er", "master", "model", "model", "modelscope:own/er")


def parcel(tmp_path: Path, *, private: bool = False, licence: str | None = "gemma") -> Parcel:
    (tmp_path / "weights").write_bytes(b"weights")
    return Parcel({"sub/model.safetensors": tmp_path / "weights", "README.md": b"# card"}, "from llmkit", private, licence)


def test_without_the_extra_the_remedy_is_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs an extra") as caught:
        origin.source("modelscope:own/er")
    assert caught.value.where == "data.sources: modelscope:own/er"
    assert caught.value.next == "pip install 'llmkit[modelscope]'"


def test_a_snapshot_is_asked_for_by_its_kind_and_revision(stand: Stand, tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if options.get("local_files_only"):
            raise HubError("not here")
        (tmp_path / "got").mkdir()
        (tmp_path / "got" / "model.safetensors").write_bytes(b"weights")
        return str(tmp_path / "got")

    stand.download = download
    found = origin.model("modelscope:own/er@v2")
    assert found.ready is None
    assert set(found.fetch().manifest.files) == {"model.safetensors"}
    name, options = asked[-1]
    assert (name, options["repo_type"], options["revision"]) == ("own/er", "model", "v2")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".py", ".pkl")) for pattern in options["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (NotExistError("gone"), "LK0351", 2),
        (AuthenticationError("who?"), "LK0351", 2),
        (PermissionDeniedError("not you"), "LK0353", 3),
        (NetworkError("no route"), "LK0355", 3),
        (HubError("odd"), "LK0356", 3),
        (ValueError("odd"), "LK0356", 3),
    ],
)
def test_what_the_client_raises_is_told(stand: Stand, error: Exception, code: str, exit_code: int) -> None:
    def download(name: str, **options: Any) -> str:
        raise error

    stand.download = download
    with pytest.raises(LlmkitError) as caught:
        origin.model("modelscope:own/er").fetch()
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.where == "model: modelscope:own/er"


def test_offline_forbids_this_hub_too(stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE=1 forbids downloading"):
        modelscope.snapshot(REPO, ["*"], local=False)
    with pytest.raises(MachineError, match="forbids uploading"):
        modelscope.publish(REPO, parcel(tmp_path))


def test_what_is_published_is_the_parcel_under_the_base_s_licence(stand: Stand, tmp_path: Path) -> None:
    done = modelscope.publish(REPO, parcel(tmp_path, private=True))
    made = stand.client.repositories["model", "own/er"]
    assert made["files"] == {"configuration.json": b"{}", "sub/model.safetensors": b"weights", "README.md": b"# card"}
    assert (made["private"], made["license"]) == (True, "gemma")
    assert done.url == "https://modelscope.cn/models/own/er"
    assert done.others == []
    made["files"]["old.gguf"] = b""
    assert modelscope.publish(REPO, parcel(tmp_path)).others == ["old.gguf"]


def test_a_licence_nobody_knows_is_not_called_apache(stand: Stand, tmp_path: Path) -> None:
    modelscope.publish(REPO, parcel(tmp_path, licence=None))
    assert stand.client.repositories["model", "own/er"]["license"] == "other"


def test_publishing_says_what_is_wrong(stand: Stand, tmp_path: Path) -> None:
    modelscope.publish(REPO, parcel(tmp_path))
    for trouble, code in (
        (PermissionDeniedError("no"), "LK0361"),
        (NetworkError("cut"), "LK0355"),
        (HubError("odd"), "LK0356"),
    ):
        stand.client.trouble = trouble
        with pytest.raises(MachineError) as caught:
            modelscope.publish(REPO, parcel(tmp_path))
        assert caught.value.code == code
    assert "run it again" in caught.value.next
    with pytest.raises(LlmkitError, match="everyone can read it"):
        modelscope.publish(REPO, parcel(tmp_path, private=True))
    nobody, stand.endpoint = stand.endpoint, "http://127.0.0.1:9"
    with pytest.raises(MachineError, match=r"127\.0\.0\.1:9: .*refused"):
        modelscope.publish(REPO, parcel(tmp_path))
    stand.endpoint = nobody
    stand.client.token = None
    with pytest.raises(MachineError, match="needs a token") as caught:
        modelscope.publish(REPO, parcel(tmp_path))
    assert "ms login" in caught.value.next
