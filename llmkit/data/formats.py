"""Dialogue formats: raw JSON objects → records. A table; a new format is one reader and one line in it.

Knows shapes, not quality: a well-formed dialogue with odd roles or empty turns is read here and judged in `filters`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmkit.data.record import Message, Record

Raw = Mapping[str, Any]
Messages = list[Message]

_ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}


class Format(NamedTuple):
    """A shape: the keys that give it away, how it reads, and the line that shows it to a user."""

    name: str
    keys: frozenset[str]
    read: Callable[[Raw, str], Record | str]
    shape: str


def read(raw: Raw, source: str) -> Record | str:
    """The record in `raw`, or the reason it cannot be read. `source` ("file:line") travels with the record."""
    for form in FORMATS:
        if form.keys <= raw.keys():
            return form.read(raw, source)
    return f"unknown shape (keys {_some(raw)}); supported: {'; '.join(form.shape for form in FORMATS)}"


def _read_preference(raw: Raw, source: str) -> Record | str:
    """`prompt`, `chosen`, `rejected`: strings or message lists; lists may repeat the prompt or carry it alone."""
    prompt = _prompt(raw.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    chosen = _continued(prompt, raw["chosen"], "chosen")
    rejected = _continued(prompt, raw["rejected"], "rejected")
    for answer in (chosen, rejected):
        if isinstance(answer, str):
            return answer
        if len(answer) < 2 or answer[-1]["role"] != "assistant":
            return "chosen and rejected must each end a dialogue with an assistant message"
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if chosen[:-1] != rejected[:-1]:
        return "chosen and rejected differ before their last message"
    return Record(chosen, source, rejected[-1]["content"])


def _read_messages(raw: Raw, source: str) -> Record | str:
    """OpenAI `messages`, with an optional `rejected` string: also what `llmkit clean` itself writes."""
    messages = _messages(raw["messages"], "messages")
    rejected = raw.get("rejected")
    if isinstance(messages, str):
        return messages
    if rejected is not None and not isinstance(rejected, str):
        return f"rejected must be a string, not {type(rejected).__name__}"
    return Record(messages, source, rejected)


def _read_sharegpt(raw: Raw, source: str) -> Record | str:
    """ShareGPT `conversations`; a `system` beside it opens the dialogue unless one already does."""
    messages = _messages(raw["conversations"], "conversations", role_key="from", text_key="value")
    if isinstance(messages, str):
        return messages
    system = raw.get("system")
    if isinstance(system, str) and system and not (messages and messages[0]["role"] == "system"):
        messages = [Message(role="system", content=system), *messages]
    return Record(messages, source)


def _read_turns(raw: Raw, source: str) -> Record | str:
    """`turns`: strings or {"text"}; where a turn names no role, user and assistant alternate."""
    turns = raw["turns"]
    if not isinstance(turns, list):
        return f"turns must be a list, not {type(turns).__name__}"
    messages: Messages = []
    for number, turn in enumerate(turns):
        fields: Any = {"text": turn} if isinstance(turn, str) else turn
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            return f'turns[{number}] must be a string or {{"text": string}}'
        role = fields.get("role")
        if role is None:
            role = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        if not isinstance(role, str):
            return f"turns[{number}].role must be a string, not {type(role).__name__}"
        messages.append({"role": _ROLE_NAMES.get(role, role), "content": fields["text"]})
    return Record(messages, source)


FORMATS: tuple[Format, ...] = (
    Format("preference", frozenset({"chosen", "rejected"}), _read_preference, '{"prompt", "chosen", "rejected"}'),
    Format("messages", frozenset({"messages"}), _read_messages, '{"messages": [{"role", "content"}]}'),
    Format("sharegpt", frozenset({"conversations"}), _read_sharegpt, '{"conversations": [{"from", "value"}]}'),
    Format("turns", frozenset({"turns"}), _read_turns, '{"turns": [{"text"}]}'),
)


def _messages(value: object, name: str, *, role_key: str = "role", text_key: str = "content") -> Messages | str:
    """Check and rename one list of messages; roles that nobody knows stay, for `filters` to reject by name."""
    if not isinstance(value, list):
        return f"{name} must be a list, not {type(value).__name__}"
    messages: Messages = []
    for number, item in enumerate(value):
        if type(item) is not dict:
            return f"{name}[{number}] must be an object, not {type(item).__name__}"
        role, text = item.get(role_key), item.get(text_key)
        if type(role) is not str or type(text) is not str:
            key, value = (text_key, text) if isinstance(role, str) else (role_key, role)
            return f"{name}[{number}].{key} must be a string, not {type(value).__name__}"
        messages.append({"role": _ROLE_NAMES.get(role, role), "content": text})
    return messages


def _prompt(value: object) -> Messages | str:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return _messages(value, "prompt")


def _continued(prompt: Sequence[Message], value: object, name: str) -> Messages | str:
    """The whole dialogue that ends in one answer: prompt + answer, or the answer's own list where it holds the prompt."""
    if isinstance(value, str):
        if not prompt:
            return f"{name} is a string, and there is no prompt"
        return [*prompt, {"role": "assistant", "content": value}]
    messages = _messages([value] if isinstance(value, dict) else value, name)
    if isinstance(messages, str):
        return messages
    carries_prompt = len(messages) > 1 and messages[0]["role"] in ("system", "user")
    return messages if carries_prompt and _opens_with(messages, prompt) else [*prompt, *messages]


def _opens_with(messages: Messages, prompt: Sequence[Message]) -> bool:
    """Whether `messages` already hold `prompt`: at their start, or (a system message apart) anywhere before the answer."""
    size = len(prompt)
    return any(messages[start : start + size] == list(prompt) for start in range(len(messages) - size))


def _some(raw: Raw) -> str:
    names = ", ".join(repr(key[:40]) for key in list(raw)[:6])
    return (names or "none") + (", …" if len(raw) > 6 else "")
