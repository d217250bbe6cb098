"""A hub on this machine: the calls of the Hugging Face hub that huggingface_hub makes to download and to upload.

It keeps repositories in memory, hashes what it is sent, and checks a commit as the real one does; `trouble` makes it fail.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_stub_token_of_no_one"


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: int = 1

    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()


@dataclass
class Hub:
    """`repositories`: (type, id) → what it holds; `requests`: method and path of each; `blobs`: what LFS was sent.

    `trouble(method, path, handler)` may answer in the hub's stead: it returns True where it did.
    """

    address: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    yaml: list[str] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    trouble: Callable[[str, str, "Handler"], bool] = lambda method, path, handler: False

    def add(self, name: str, files: dict[str, bytes], *, repo_type: str = "model", **more: Any) -> Repository:
        made = self.repositories[repo_type, name] = Repository(dict(files), **more)
        return made


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append((method, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if method in ("POST", "PUT") else b""
        if method in ("POST", "PUT") and self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        if self.hub.trouble(method, path, self):
            return
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        steps = [one for one in path.split("/") if one]
        if self.headers.get("Authorization") and self.token() is None:
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif steps[:1] == ["api"]:
            self._api(method, steps[1:], query)
        elif steps[-4:] and ".git" in path and method == "POST":
            self._lfs_batch()
        elif steps[0] == "lfs":
            self._lfs_put(steps[1])
        else:
            self._resolve(method, steps)

    def token(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return given if given in self.hub.tokens else None

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        told = {name: value for name, value in {"X-Error-Code": code, "X-Error-Message": message}.items() if value}
        self.send(status, json.dumps({"error": message or code}).encode(), {"Content-Type": "application/json", **told})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _visible(self, repo_type: str, name: str) -> Repository | None:
        """The repository, or None after a refusal was sent."""
        found = self.hub.repositories.get((repo_type, name))
        if found is None or (found.private and not self.token()):
            self.refuse(404 if self.token() else 401, "RepoNotFound", "Repository not found")
            return None
        if found.gated:
            status = 403 if self.token() else 401
            self.refuse(status, "GatedRepo", f"Access to model {name} is restricted")
            return None
        return found

    def _api(self, method: str, steps: list[str], query: dict[str, str]) -> None:
        if steps == ["whoami-v2"]:
            self.json({"name": "someone"}) if self.token() else self.refuse(401)
        elif steps == ["validate-yaml"]:
            self._validate()
        elif steps == ["repos", "create"]:
            self._create()
        elif steps[0] in ("models", "datasets") and len(steps) == 1:
            kind = steps[0].removesuffix("s")
            wanted = query.get("search") or query.get("author", "") + "/"
            names = [name for (of, name) in self.hub.repositories if of == kind and wanted in name]
            self.json([{"id": name, "modelId": name, "private": False, "tags": []} for name in names])
        elif steps[0] in ("models", "datasets"):
            self._repository(method, steps[0].removesuffix("s"), "/".join(steps[1:3]), steps[3:])
        else:
            self.refuse(404)

    def _repository(self, method: str, repo_type: str, name: str, rest: list[str]) -> None:
        found = self._visible(repo_type, name)
        if found is None:
            return
        if rest[:1] == ["preupload"]:
            self._preupload(found)
        elif rest[:1] == ["commit"] and method == "POST":
            self._commit(found, self._page(repo_type, name))
        elif rest[:1] in (["revision"], ["tree"]) and rest[1] not in ("main", found.sha()):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif rest[:1] == ["tree"]:
            self.json([_entry(path, data) for path, data in found.files.items()])
        else:
            siblings = [{"rfilename": path} for path in found.files]
            self.json(
                {"id": name, "modelId": name, "sha": found.sha(), "private": found.private, "siblings": siblings, "tags": []}
            )

    def _page(self, repo_type: str, name: str) -> str:
        return f"{self.hub.address}/{'datasets/' if repo_type == 'dataset' else ''}{name}"

    def _resolve(self, method: str, steps: list[str]) -> None:
        repo_type = "dataset" if steps[0] == "datasets" else "model"
        steps = steps[1:] if repo_type == "dataset" else steps
        found = self._visible(repo_type, "/".join(steps[:2]))
        if found is None:
            return
        path = "/".join(steps[4:])
        if path not in found.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        data, status = found.files[path], 200
        entry = _entry(path, data)
        about = {"X-Repo-Commit": found.sha(), "ETag": f'"{entry.get("lfs", entry)["oid"]}"', "Accept-Ranges": "bytes"}
        if given := self.headers.get("Range"):
            self.hub.ranges.append(given)
            start = int(given.removeprefix("bytes=").partition("-")[0])
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.send(status, data, about)

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        self.hub.yaml.append(content)
        import yaml

        front = yaml.safe_load(content.split("---")[1])
        self.hub.cards.append(front)
        base = front.get("base_model")
        wrong = [one for one in ([base] if isinstance(base, str) else base or []) if one.count("/") != 1 or ":" in one]
        if wrong:  # as the hub says it
            message = f'"base_model" with value "{wrong[0]}" is not valid. Use a model id from https://hf.co/models.'
            self.json({"errors": [{"message": message}], "warnings": []}, 400)
        else:
            self.json({"errors": [], "warnings": []})

    def _create(self) -> None:
        if not self.token():
            self.refuse(401, message="Invalid username or password.")
            return
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "stranger":
            self.refuse(403, message="You don't have the rights to create a model under this namespace")
            return
        key = (asked.get("type", "model"), name)
        if key in self.hub.repositories:
            self.json({"error": "You already created this model repo", "url": self._page(*key)}, 409)
            return
        self.hub.repositories[key] = Repository(
            {".gitattributes": b"*.safetensors filter=lfs\n"}, asked.get("visibility") == "private"
        )
        self.json({"url": self._page(*key), "name": name})

    def _preupload(self, found: Repository) -> None:
        files = json.loads(self.body)["files"]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".gguf")) else "regular",
                "shouldIgnore": False,
                "oid": None if one["path"] not in found.files else _entry(one["path"], found.files[one["path"]])["oid"],
            }
            for one in files
        ]
        self.json({"files": modes})

    def _lfs_batch(self) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}
            objects.append(entry)
        self.json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400, message="the content is not what its hash says")
            return
        self.hub.blobs[oid] = self.body
        self.send(200, b"")

    def _commit(self, found: Repository, page: str) -> None:
        if not self.token():
            self.refuse(401, message="Invalid username or password.")
            return
        for line in self.body.splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif asked["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.blobs[value["oid"]]
        found.commits += 1
        self.json({"commitUrl": f"{page}/commit/{found.sha()}", "commitOid": found.sha()})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def serving(hub: Hub | None = None) -> Iterator[Hub]:
    """A hub that answers on the loopback for as long as the context lasts."""
    hub = hub or Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: str, *, token: str | None = None) -> None:
    """Let huggingface_hub, in this process, speak to `hub` and keep what it fetches below `cache`.

    Its constants are read from the environment once, when it is imported: a test sets what they would be.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in {"ENDPOINT": hub.address, "HF_HUB_CACHE": cache, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    insecure = _http.REPO_API_REGEX.pattern.replace("https:", "https?:")
    monkeypatch.setattr(_http, "REPO_API_REGEX", re.compile(insecure, re.VERBOSE))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
