"""The routes of an OpenAI-compatible server. Knows HTTP; nothing of sockets, signals or runtimes."""

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llmkit import errors, progress
from llmkit.serve.http import metrics, replies
from llmkit.serve.http.bodies import Bodies
from llmkit.serve.http.completing import Completing
from llmkit.serve.http.desk import Desk
from llmkit.serve.http.door import Door
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.http.served import Served


def build(desk: Desk, *, key: str | None, host: str) -> Starlette:
    """The app. `key`: what clients must send, None for none; `host`: the name it listens on."""
    bodies = Bodies()

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(desk.model(None))]})

    async def model(request: Request) -> Response:
        return JSONResponse(_model(desk.model(request.path_params["name"])))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": desk.state}, 200 if desk.state == "ok" else 503)

    async def measured(_: Request) -> Response:
        return PlainTextResponse(desk.metrics.text(desk.gauges()), media_type=metrics.CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completing(desk, bodies, replies.CHAT), methods=["POST"]),
            Route("/v1/completions", Completing(desk, bodies, replies.TEXT), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", measured),
        ],
        middleware=[Middleware(Door, desk=desk, key=key, host=host)],
        exception_handlers={RefusalError: _refused, HTTPException: _unknown, Exception: _broken},
    )


def _model(served: Served) -> Mapping[str, Any]:
    about = {"id": served.name, "object": "model", "created": served.since, "owned_by": "llmkit"}
    return {**about, "max_model_len": served.speaker.context}  # vLLM's name for the context


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return JSONResponse(error.body, error.status, error.headers)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "there is nothing at this address", 405: f"{request.method} is not what this address takes"}
    return await _refused(request, RefusalError(error.status_code, told.get(error.status_code, error.detail)))


async def _broken(request: Request, error: Exception) -> Response:
    """A bug: its traceback goes to a file that the log names, and not to the client."""
    found = errors.told(error)
    progress.note(f"warning: {found.what}; {found.next}")
    return await _refused(request, RefusalError(500, "the server has a bug", code=found.code or None))
