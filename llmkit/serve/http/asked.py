"""What a client asks for, from its JSON. Knows OpenAI's fields; nothing of models, and nothing of how an answer is sent.

A field that would change the answer and that no runtime here honours is refused by name, unless it says what happens anyway; a
field unknown here is ignored, as OpenAI's own clients send some that change nothing (`store`, `metadata`, `user`, …).

Fields: https://platform.openai.com/docs/api-reference/chat/create and …/completions/create
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmkit.serve.http import refusal
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.speaker import Message, Wish

MAX_CHOICES = 8
_MAX_MESSAGES = 4096
_MAX_STOPS = 4
_MAX_STOP_CHARS = 256
_COMPLETION_TOKENS = 16  # what OpenAI's /completions makes where nothing is said
SEEDS = 2**31
# Below these fp32 divides by nothing, or keeps nothing to draw from: as good as greedy, and as vLLM takes it.
_COLDEST = 1e-5
_NARROWEST = 1e-6
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}

# Field → the values, beside null, that ask for nothing special. 0 and False are told apart: `logprobs: 0` asks for some.
_NO: tuple[object, ...] = (False,)
_ZERO: tuple[object, ...] = (0, 0.0)
_ONE: tuple[object, ...] = (1, 1.0)
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": _NO,
    "top_logprobs": _ZERO,
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": _ZERO,
    "frequency_penalty": _ZERO,
    "repetition_penalty": _ONE,
    "repeat_penalty": _ONE,
    "top_k": (0, -1),
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "ignore_eos": _NO,
    "stop_token_ids": ([],),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "best_of": _ONE,
    "echo": _NO,
    "suffix": ("",),
    "use_beam_search": _NO,
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": _NO,
    "grammar": ("",),
    "json_schema": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}


@dataclass(frozen=True)
class Asked:
    """One request: an answer, or `choices` of them, to each of the `prompts`, which are conversations or plain texts."""

    model: str | None
    prompts: tuple[Sequence[Message] | str, ...]
    wish: Wish
    choices: int
    stream: bool
    include_usage: bool

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.choices

    @property
    def param(self) -> str:
        """The field that holds what the model reads."""
        return "prompt" if isinstance(self.prompts[0], str) else "messages"

    def texts(self) -> list[str]:
        """All that the client wrote for the model to read."""
        return [
            text
            for prompt in self.prompts
            for text in ([prompt] if isinstance(prompt, str) else [message["content"] for message in prompt])
        ]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    include_usage: bool | None = None


class _Common(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if texts is None:
            return None
        if not isinstance(texts, list) or len(texts) > _MAX_STOPS or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"give a text or a list of at most {_MAX_STOPS}")
        if any(not text or len(text) > _MAX_STOP_CHARS for text in texts):
            raise ValueError(f"each text has 1 to {_MAX_STOP_CHARS} characters")
        return texts

    def wish(self, max_tokens: int | None) -> Wish:
        temperature = 1.0 if self.temperature is None else self.temperature
        return Wish(
            max_tokens=max_tokens,
            temperature=temperature if temperature >= _COLDEST else 0.0,
            top_p=1.0 if self.top_p is None else max(self.top_p, _NARROWEST),
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=tuple(self.stop or ()),
        )


_Body = TypeVar("_Body", bound=_Common)


class _Chat(_Common):
    messages: list[dict[str, str]] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)

    @field_validator("messages", mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        if not isinstance(value, list):
            raise ValueError("give a list of messages")
        return [_message(item, index) for index, item in enumerate(value[: _MAX_MESSAGES + 1])]


class _Text(_Common):
    prompt: list[str] = Field(min_length=1, max_length=MAX_CHOICES)

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        prompts = [value] if isinstance(value, str) else value
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("give a text or a list of texts; token ids are not supported")
        return prompts


def chat(body: bytes) -> Asked:
    """A request to /v1/chat/completions. Raises RefusalError (400), which names the field."""
    found = _checked(_Chat, body)
    limit = found.max_tokens if found.max_completion_tokens is None else found.max_completion_tokens
    return _asked(found, (found.messages,), limit)


def text(body: bytes) -> Asked:
    """A request to /v1/completions. Raises as `chat`."""
    found = _checked(_Text, body)
    return _asked(found, tuple(found.prompt), _COMPLETION_TOKENS if found.max_tokens is None else found.max_tokens)


PARSERS: Mapping[Literal["chat", "text"], Callable[[bytes], Asked]] = {"chat": chat, "text": text}


def _asked(found: _Common, prompts: tuple[Sequence[Message] | str, ...], limit: int | None) -> Asked:
    choices = found.n or 1
    if len(prompts) * choices > MAX_CHOICES:
        raise RefusalError(400, f"at most {MAX_CHOICES} answers a request", code="invalid_value", param="n")
    if found.stream_options and not found.stream:
        raise RefusalError(400, "only with `stream: true`", code="invalid_value", param="stream_options")
    options = found.stream_options
    return Asked(found.model, prompts, found.wish(limit), choices, bool(found.stream), bool(options and options.include_usage))


def _checked(kind: type[_Body], body: bytes) -> _Body:
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusalError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise RefusalError(400, "the body is not a JSON object", code="invalid_json")
    for name, harmless in _UNSUPPORTED.items():
        value = raw.get(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
            raise refusal.unsupported(name)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        told = str(first.get("ctx", {}).get("error", first["msg"]))
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise RefusalError(400, f"`{param}`: {told}", code=code, param=param) from None


def _message(item: object, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(item, dict):
        raise ValueError(f"{where} is not an object")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where}.role is none of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "audio", "refusal"):
        if item.get(name):
            raise ValueError(f"{where}.{name} is not supported by this server")
    return {"role": _ROLES[role], "content": _content(item.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts, a line each, as llama.cpp and vLLM join them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is neither a text nor a list of text parts")
    texts = [part["text"] for part in value if _is_text(part)]
    if len(texts) < len(value):
        raise ValueError(f"{where} has a part that is no text; this server reads texts alone")
    return "\n".join(texts)


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
