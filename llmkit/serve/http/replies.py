"""Answers in OpenAI's shapes. Knows JSON; nothing of models or connections.

Shapes: https://platform.openai.com/docs/api-reference/chat/object, …/chat/streaming and …/completions/object
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Said:
    """A whole answer. `finish`: stop, length or content_filter."""

    text: str
    finish: str


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: its prompts, each once, and all of its answers."""

    prompt: int
    completion: int

    @property
    def data(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Shape:
    """What chat and text completions write in different ways. `opening`: what the first chunk of a choice says."""

    name: Literal["chat", "text"]
    prefix: str
    whole: str
    chunk: str
    said: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]
    opening: Mapping[str, Any] | None


CHAT = Shape(
    name="chat",
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    said=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    part=lambda text: {"delta": {"content": text} if text else {}},
    opening={"delta": {"role": "assistant", "content": ""}},
)
TEXT = Shape(
    name="text",
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    said=lambda text: {"text": text},
    part=lambda text: {"text": text},
    opening=None,
)


@dataclass(frozen=True)
class Envelope:
    """What all chunks of one answer share."""

    shape: Shape
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, said: Sequence[Said], usage: Usage) -> bytes:
        choices = [
            {"index": index, **self.shape.said(one.text), "logprobs": None, "finish_reason": one.finish}
            for index, one in enumerate(said)
        ]
        return self._json(self.shape.whole, choices, {"usage": usage.data})

    def opening(self, index: int, *, with_usage: bool) -> bytes:
        return b"" if self.shape.opening is None else self._event(index, self.shape.opening, None, with_usage=with_usage)

    def part(self, index: int, text: str, *, finish: str = "", with_usage: bool) -> bytes:
        """An event with more text, or the end, or both."""
        return self._event(index, self.shape.part(text), finish or None, with_usage=with_usage)

    def usage(self, usage: Usage) -> bytes:
        return _event(self._json(self.shape.chunk, [], {"usage": usage.data}))

    def _event(self, index: int, part: Mapping[str, Any], finish: str | None, *, with_usage: bool) -> bytes:
        choice = {"index": index, **part, "logprobs": None, "finish_reason": finish}
        return _event(self._json(self.shape.chunk, [choice], {"usage": None} if with_usage else {}))

    def _json(self, kind: str, choices: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> bytes:
        head = {"id": self.shape.prefix + self.id, "object": kind, "created": self.created, "model": self.model}
        return orjson.dumps({**head, "choices": choices, **more})


def failure(body: Mapping[str, Any]) -> bytes:
    """An error in a stream that has begun, after which nothing comes."""
    return _event(orjson.dumps(body))


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
