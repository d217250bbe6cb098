"""A chat template, which is a stranger's program: rendered in jinja2's sandbox, in a process with little time and memory.

Knows Jinja and processes; nothing of GGUF. The process is this module too, so it imports little.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from llmkit.errors import MachineError

_PATIENCE_SECONDS = 20
_CPU_SECONDS = 2
_MORE_MEMORY = 1 << 28
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Rendering:
    """What a template made of a conversation: `text`, or `error` where it failed."""

    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class Conversation:
    """What is rendered: messages by role and content."""

    messages: tuple[tuple[str, str], ...]
    generation_prompt: bool


def render(template: str, conversations: Sequence[Conversation], tokens: Mapping[str, str]) -> list[Rendering]:
    """Each conversation through the Jinja `template`, as transformers would, in a bounded process.

    `tokens` are the texts of `bos_token` and its like. A template that takes too long, needs too much memory or writes too
    much has failed on every conversation.

    Raises:
        MachineError: the process could not be started.
    """
    asked = {
        "template": template,
        "tokens": dict(tokens),
        "conversations": [{"messages": one.messages, "prompt": one.generation_prompt} for one in conversations],
    }
    package = Path(__file__).resolve().parents[2]
    try:
        # -P: nothing of the working directory is imported, which may be where the file came with company.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "llmkit.gguf.rendering"],
            input=json.dumps(asked).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Rendering(error=f"it takes longer than {_PATIENCE_SECONDS} s")] * len(conversations)
    except OSError as error:
        raise MachineError(f"cannot start a process to render the chat template in: {error}", code="LK0905") from None
    if done.returncode:
        return [Rendering(error="it needs too much time or memory")] * len(conversations)
    return [Rendering(**one) for one in json.loads(done.stdout)]


def _serve() -> None:
    """The child's side of `render`: JSON on stdin, JSON on stdout."""
    asked = json.load(sys.stdin)
    _limit_resources()
    answers = [
        _rendered(asked["template"], one["messages"], asked["tokens"], prompt=one["prompt"]) for one in asked["conversations"]
    ]
    json.dump(answers, sys.stdout)


def _limit_resources() -> None:
    import resource

    enough = ceil(time.process_time()) + _CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (enough, enough))
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        now = int(statistics.read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MORE_MEMORY, now + _MORE_MEMORY))


def _rendered(template: str, messages: Sequence[Sequence[str]], tokens: Mapping[str, str], *, prompt: bool) -> dict[str, str]:
    """One conversation; the environment is that of transformers' own renderer."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_block(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    plain = [{"role": role, "content": content} for role, content in messages]
    try:
        text = environment.from_string(template).render(messages=plain, add_generation_prompt=prompt, **tokens)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        return {"error": (str(error) or type(error).__name__).splitlines()[0][:200]}
    return {"text": text} if len(text) <= _LONGEST else {"error": f"it writes {len(text)} characters for a few words"}


def _generation_block() -> type[Any]:
    """`{% generation %}` marks answers for libraries that train on them; for rendering it is a plain block."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


if __name__ == "__main__":
    _serve()
