"""`llmkit serve`: an artifact behind an OpenAI-compatible API, until a signal ends it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmkit import progress
from llmkit.commands.result import Result
from llmkit.errors import MachineError

if TYPE_CHECKING:
    from llmkit.serve.http import running

_PARALLEL = 8


def serve(
    artifact: str,
    *,
    base: str | None,
    host: str,
    port: int,
    api_key: str | None,
    name: str | None,
    backend: str,
    context: int | None,
    parallel: int | None,
    queue: int | None,
    max_tokens: int | None,
    sensitive: Sequence[Path],
    drain_seconds: float,
    json_: bool,
) -> Result:
    """Serve until SIGTERM or SIGINT. A line says where as soon as requests are answered: scripts wait for it."""
    from llmkit.serve import opening
    from llmkit.serve.http import running

    given = {"queue": queue, "max_tokens": max_tokens, "name": name}
    settings = running.Settings(
        host=host,
        port=port,
        key=api_key,
        drain_seconds=drain_seconds,
        sensitive=sensitive,
        **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    found = opening.find(artifact, base=base)
    stop = running.Stop()
    with running.signals(stop):
        try:
            done = running.serve(
                lambda: opening.open_speaker(found, context=context, parallel=parallel or _PARALLEL, backend=backend),
                settings,
                ready=partial(_tell, json_=json_),
                stop=stop,
            )
        except running.StoppedError:
            progress.note("ended while the model was loading")
            return Result("served nothing", _data({}, 0))
    return _result(done)


def _tell(now: "running.Ready", *, json_: bool) -> None:
    line = f"serving {now.model} at {now.url} ({now.runtime}, context {now.context}, {now.parallel} at once)"
    typer.echo(json.dumps({"event": "ready", **asdict(now)}, ensure_ascii=False) if json_ else line)


def _result(done: Any) -> Result:
    answered = {str(status): 0 for _, status in done.metrics.requests}
    for (_, status), count in done.metrics.requests.items():
        answered[str(status)] += count
    made = done.metrics.generated_tokens
    failure = None
    if done.cut:
        failure = MachineError(
            f"{done.cut} requests were accepted and not answered in full",
            code="LK0834",
            next="give --drain-seconds more, or end it by one signal alone",
        )
    return Result(f"served {sum(answered.values())} requests, {made} tokens", _data(answered, made), failure)


def _data(requests: dict[str, int], tokens: int) -> dict[str, Any]:
    return {"event": "ended", "requests": requests, "generated_tokens": tokens}
