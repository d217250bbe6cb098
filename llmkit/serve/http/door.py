"""Who may come in: the key, the host's name, a server that is leaving. Knows HTTP's headers; nothing of what is asked.

A server on this machine without a key is open to every web page that its user's browser shows: a page's name may be made to
lead here (DNS rebinding), and a page may send what it cannot read. So such a server answers to loopback names alone, and to
no page of another origin.
"""

import hmac
import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmkit import progress
from llmkit.serve.http.desk import Desk
from llmkit.serve.http.refusal import RefusalError

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_WATCHING = ("/health", "/metrics")
_GONE = 499  # as nginx counts clients that leave before an answer
_RETRY_SECONDS = 10


class Door:
    """Middleware around all routes; counts what passes. `key`: None asks for none, and then `host` must be loopback."""

    def __init__(self, app: ASGIApp, *, desk: Desk, key: str | None, host: str) -> None:
        self._app = app
        self._desk = desk
        self._key = None if key is None else key.encode()
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, watched)
            status = status or _GONE
        finally:
            path = scope["path"]
            route = next((known for known in ROUTES if path == known or path.startswith(f"{known}/")), "other")
            self._desk.metrics.requests[route, status or 500] += 1
            if path not in _WATCHING:
                seconds = time.monotonic() - started
                progress.note(f"{route} {status or 500} {seconds:.2f} s")

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except RefusalError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        watching = scope["path"] in _WATCHING
        self._desk.in_flight += not watching
        try:
            await self._app(scope, receive, send)
        finally:
            self._desk.in_flight -= not watching

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._key is None:
            self._check_names(headers)
        elif scope["path"] != "/health":
            self._check_key(headers.get("authorization", ""))
        if self._desk.draining and scope["path"] not in _WATCHING:
            raise RefusalError(503, "the server is shutting down", code="draining", retry_after=_RETRY_SECONDS)

    def _check_key(self, given: str) -> None:
        scheme, _, key = given.partition(" ")
        assert self._key is not None
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1", "replace"), self._key):
            told = "no API key, or a wrong one; send it as `Authorization: Bearer KEY`"
            raise RefusalError(401, told, code="invalid_api_key")

    def _check_names(self, headers: Headers) -> None:
        if not self._is_ours(f"//{headers.get('host', '')}"):
            told = "this server has no key and answers to its own machine's names alone, such as localhost"
            raise RefusalError(403, told, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin):
            raise RefusalError(403, "this server answers to no web page of another origin", code="origin_not_allowed")

    def _is_ours(self, url: str) -> bool:
        try:
            name = (urlsplit(url).hostname or "").lower()
        except ValueError:
            return False
        return name == self._host or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether a host's name or address means this machine, without asking a name server."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
