"""Dialogue formats in: raw JSON objects → records. A table; a new format is one reader and one line in it.

Knows shapes, not quality: a well-formed dialogue with odd roles or empty turns is read here and judged in `filters`.
Tools stay visible to `filters.tools`, which rejects or drops them: what a tool, function or observation returned has the
role "tool"; a message that carries calls has the role "tool_call", and as its content only what it says besides them.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from llmkit.data.record import Message, Record

Raw = Mapping[str, Any]
Messages = list[Message]

VOTERS = 1000
MAX_MESSAGES = 100_000  # no dialogue has more, and a few of a million would fill memory
PAIRS = frozenset({"", "explicit", "edit", "rating", "shuffle", "generated"})

_TALK = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_TOOL_CALL = "tool_call"
_TOOLS = {
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": _TOOL_CALL,
    "tool_call": _TOOL_CALL,
}
_CANONICAL = frozenset(_TALK.values())
_CALLS = frozenset({"tool_calls", "function_call"})
_OPENAI, _SHAREGPT = ("role", "content"), ("from", "value")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PROMPTS = ("prompt", "instruction", "query", "question")
_SCORES = dict.fromkeys(("up", "thumbs_up", "like", "true"), 1.0) | dict.fromkeys(
    ("down", "thumbs_down", "dislike", "false"), 0.0
)
_SCORE_CHARS = 32  # no number that a person gave is longer, and float() of a million digits is slow

_BACKGROUND = ("context", "passage", "article")
_QUESTIONS = ("question", "prompt", "instruction", "query", "problem", "text", "input")
_CHOICES = (*"abcdefghij", "choices", "options")


class Format(NamedTuple):
    """A shape: the keys that give it away, what reads it (or raises `_UnreadableError`), and the line to show."""

    name: str
    keys: frozenset[str]
    read: Callable[[Raw, str], Record]
    shape: str


class _UnreadableError(Exception):
    """Why a raw object is no record; never leaves this module."""


def read(
    raw: Raw,
    source: str,
    *,
    prefer: str | None = None,
    strict: bool = False,
    score_field: str | None = None,
    edited_field: str | None = None,
) -> Record | str:
    """The record in `raw`, or the reason it cannot be read. `source` ("file:line") travels with the record.

    `prefer`, one of `NAMES`, is the format to use where its keys are there; else, unless `strict`, the first that fits. A
    preference pair is always read as one unless `strict`.
    `score_field` ("rating", or with dots "meta.rating") holds what a person thought of the last answer: a number, true or
    false, or a word such as up or dislike; anything else is no score. `edited_field` holds that answer as a person corrected
    it: it becomes the answer, and what it corrects the rejected one, in place of any other.
    """
    form = None if prefer is None else _BY_NAME[prefer]
    if not strict and _fits(FORMATS[0], raw):
        form = FORMATS[0]  # a pair among dialogues of its shape
    if form is None or not _fits(form, raw):
        if strict and form is not None:
            return f"not {form.name}: no {', '.join(sorted(repr(key) for key in form.keys if raw.get(key) is None))}"
        form = _detect(raw)
    if form is None:
        return f"unknown shape (keys {_some(raw)}); supported: {'; '.join(form.shape for form in FORMATS)}"
    try:
        record = _labelled(form.read(raw, source), raw)
    except _UnreadableError as reason:
        return str(reason)
    if len(record.messages) > MAX_MESSAGES:
        return f"holds more than {MAX_MESSAGES} messages"
    if score_field is not None:
        record = record._replace(score=_score(_field(raw, score_field)))
    if edited_field is not None:
        record = _edited(record, _field(raw, edited_field))
    return record


def vote(raws: Iterable[Raw]) -> str | None:
    """The name of the format that most of the first `VOTERS` objects are read as (ties: table order); None where none is."""
    counts = Counter(form.name for form in map(_fitting, islice(raws, VOTERS)) if form)
    return max((name for name in NAMES if counts[name]), key=lambda name: counts[name], default=None)


def prompt_text(raw: Raw) -> str | None:
    """All that a user says in `raw`, joined by line feeds: for the rows of evaluation sets, which often hold no answer.

    Reads every format, and else a question with its passage and its choices (columns A, B, C, …, or a list) under the names
    that evaluation sets use, in any case. None where there is nothing of the kind.
    """
    form = _fitting(raw)
    try:
        messages = form.read(raw, "").messages if form else []
    except _UnreadableError:
        messages = []
    said = _user_text(messages)
    if said:
        return said
    fields = {str(key).lower(): value for key, value in raw.items()}
    key = next((key for key in _QUESTIONS if _asked_text(fields.get(key))), None)
    if key is None:
        return None
    texts = [text for name in _BACKGROUND for text in _strings(fields.get(name))]
    texts.append(_asked_text(fields[key]))
    if key == "instruction":
        texts += _strings(fields.get("input"))
    texts += [text for name in _CHOICES for text in _strings(fields.get(name))]
    return "\n".join(text for text in texts if text.strip())


def _read_edit(raw: Raw, source: str) -> Record:
    """`prompt`, `original`, `edited`: the answer as it was and as a person corrected it."""
    answer = _answer(_string(raw, "original"))
    return _edited(Record([*_lead(raw, ("prompt",)), answer], source), _string(raw, "edited"))


def _read_preference(raw: Raw, source: str) -> Record:
    """`chosen` and `rejected`: strings, messages or lists of messages; lists may repeat the prompt or carry it alone.

    The prompt stands in `prompt`, or as LLaMA-Factory has it: in `instruction` and `input`, or in `conversations`.
    """
    prompt = _lead(raw, _PROMPTS) or _dialogue_before(raw)
    chosen = _continued(prompt, raw["chosen"], "chosen")
    rejected = _continued(prompt, raw["rejected"], "rejected")
    for answer in (chosen, rejected):
        if len(answer) < 2 or answer[-1]["role"] != "assistant":
            raise _UnreadableError("chosen and rejected must each end a dialogue with an assistant message")
    if chosen[:-1] != rejected[:-1]:
        raise _UnreadableError("chosen and rejected differ before their last message")
    return Record(chosen, source, rejected[-1]["content"])


def _read_messages(raw: Raw, source: str) -> Record:
    """OpenAI `messages`, with an optional `rejected` string: also what `llmkit clean` itself writes."""
    messages = _messages(raw["messages"], "messages")
    rejected = raw.get("rejected")
    if rejected is None:
        rejected = _swift_rejected(raw) if "rejected_response" in raw else None
    elif not isinstance(rejected, str):
        raise _UnreadableError(f"rejected must be a string, not {type(rejected).__name__}")
    return Record(_with_system(raw, messages) if "system" in raw else messages, source, rejected)


def _read_sharegpt(raw: Raw, source: str) -> Record:
    """ShareGPT `conversations`; a `system` beside it opens the dialogue unless one already does."""
    return Record(_with_system(raw, _messages(raw["conversations"], "conversations")), source)


def _read_turns(raw: Raw, source: str) -> Record:
    """`turns`: strings or {"text"}; where a turn names no role, user and assistant alternate."""
    turns = raw["turns"]
    if not isinstance(turns, list):
        raise _UnreadableError(f"turns must be a list, not {type(turns).__name__}")
    messages: Messages = []
    for number, turn in enumerate(turns):
        fields: Any = {"text": turn} if isinstance(turn, str) else turn
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise _UnreadableError(f'turns[{number}] must be a string or {{"text": string}}')
        role = fields.get("role")
        if role is None:
            role = "assistant" if messages and messages[-1]["role"] == "user" else "user"
        if not isinstance(role, str):
            raise _UnreadableError(f"turns[{number}].role must be a string, not {type(role).__name__}")
        messages.append(_message(role, fields["text"]))
    return Record(messages, source)


def _read_alpaca(raw: Raw, source: str) -> Record:
    """Alpaca `instruction`, `input`, `output`, with an optional `system` and `history` of [question, answer]."""
    return Record([*_lead(raw, ("instruction",)), _answer(_string(raw, "output"))], source)


def _read_swift(raw: Raw, source: str) -> Record:
    """Swift `query`, `response`, with an optional `system`, `history` and `rejected_response`."""
    return Record([*_lead(raw, ("query",)), _answer(_string(raw, "response"))], source, _swift_rejected(raw))


def _read_completion(raw: Raw, source: str) -> Record:
    """TRL `prompt` and `completion`, strings or lists of messages; a `label` of true or false is a thumb up or down."""
    messages = _continued(_lead(raw, ("prompt",)), raw["completion"], "completion")
    label = _score(raw.get("label"))
    return Record(messages, source, score=label if label in (0, 1) else None)


def _read_response(raw: Raw, source: str) -> Record:
    """`prompt` and `response`, strings or lists of messages."""
    return Record(_continued(_lead(raw, ("prompt",)), raw["response"], "response"), source)


FORMATS: tuple[Format, ...] = (
    Format("preference", frozenset({"chosen", "rejected"}), _read_preference, '{"prompt", "chosen", "rejected"}'),
    Format("messages", frozenset({"messages"}), _read_messages, '{"messages": [{"role", "content"}]}'),
    Format("sharegpt", frozenset({"conversations"}), _read_sharegpt, '{"conversations": [{"from", "value"}]}'),
    Format("turns", frozenset({"turns"}), _read_turns, '{"turns": [{"text"}]}'),
    Format("edit", frozenset({"prompt", "original", "edited"}), _read_edit, '{"prompt", "original", "edited"}'),
    Format("alpaca", frozenset({"instruction", "output"}), _read_alpaca, '{"instruction", "input", "output"}'),
    Format("swift", frozenset({"query", "response"}), _read_swift, '{"query", "response"}'),
    Format("completion", frozenset({"prompt", "completion"}), _read_completion, '{"prompt", "completion"}'),
    Format("response", frozenset({"prompt", "response"}), _read_response, '{"prompt", "response"}'),
)
NAMES = tuple(form.name for form in FORMATS)
_BY_NAME = {form.name: form for form in FORMATS}


def _detect(raw: Raw) -> Format | None:
    # A null is a missing key, but where nothing else fits, its reader is the one to say which null stands in the way.
    return _fitting(raw) or next((form for form in FORMATS if form.keys <= raw.keys()), None)


def _fitting(raw: Raw) -> Format | None:
    keys = raw.keys()
    for form in FORMATS:
        if form.keys <= keys and _fits(form, raw):
            return form
    return None


def _fits(form: Format, raw: Raw) -> bool:
    """Whether the format's keys are all there; a column that is null in this row is not."""
    return None not in map(raw.get, form.keys)


def _labelled(record: Record, raw: Raw) -> Record:
    """With what the line itself says of the pair and the score: llmkit's own `pair` and `score`, LLaMA-Factory's `kto_tag`."""
    messages, source, rejected, pair, score = record
    if rejected is None and not ("pair" in raw or "score" in raw or "kto_tag" in raw):
        return record
    given = raw.get("pair")
    if isinstance(given, str) and given in PAIRS:
        pair = given
    elif rejected is not None and not pair:
        pair = "explicit"
    if score is None:
        score = _score(raw.get("kto_tag"))
    if score is None:
        score = _score(raw.get("score"))
    return Record(messages, source, rejected, pair, score)


def _edited(record: Record, text: object) -> Record:
    """With `text` as the last assistant message and what stood there rejected; as it was where that says nothing new."""
    if not isinstance(text, str) or not text.strip():
        return record
    messages = record.messages
    last = next((number for number in reversed(range(len(messages))) if messages[number]["role"] == "assistant"), None)
    if last is None or messages[last]["content"] == text:
        return record
    original = messages[last]["content"]
    record = record._replace(messages=[*messages[:last], _answer(text), *messages[last + 1 :]])
    return record._replace(rejected=original, pair="edit") if original.strip() else record


def _field(raw: Raw, path: str) -> object:
    """The value under a key, or under keys joined by dots; None where there is none."""
    if path in raw:
        return raw[path]
    value: object = raw
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _score(value: object) -> float | None:
    if isinstance(value, str):
        word = value[: _SCORE_CHARS + 1].strip().lower().replace(" ", "_").replace("-", "_")
        if word in _SCORES:
            return _SCORES[word]
        value = value.strip()
    if not isinstance(value, bool | int | float | str) or (isinstance(value, str) and len(value) > _SCORE_CHARS):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _messages(value: object, name: str) -> Messages:
    """Check and rename one list of messages of either shape; roles that nobody knows stay, for `filters` to reject by name."""
    if not isinstance(value, list):
        raise _UnreadableError(f"{name} must be a list, not {type(value).__name__}")
    if _canonical(value):
        return value
    role_key, text_key = _SHAREGPT if value and type(value[0]) is dict and "from" in value[0] else _OPENAI
    messages: Messages = []
    for item in value:
        if type(item) is dict:
            role, text = item.get(role_key), item.get(text_key)
            if type(role) is str and type(text) is str:
                talker = _TALK.get(role)
                if talker is not None and (len(item) == 2 or _CALLS.isdisjoint(item)):
                    messages.append({"role": talker, "content": text})
                    continue
        messages.append(_odd_message(item, role_key, text_key, where=f"{name}[{len(messages)}]"))
    return messages


def _canonical(value: list[Any]) -> bool:
    """Whether these are our own messages to the order of the keys, as most are: then nothing needs a copy."""
    try:
        for item in value:
            key, _ = item
            if key != "role" or item["role"] not in _CANONICAL or type(item["content"]) is not str:
                return False
    except (TypeError, KeyError, ValueError):
        return False
    return True


def _odd_message(item: object, role_key: str, text_key: str, *, where: str) -> Message:
    """A message that is not just a known role and a string: calls, null, parts, or a role that may be a tool's."""
    if not isinstance(item, dict):
        raise _UnreadableError(f"{where} must be an object, not {type(item).__name__}")
    role = item.get(role_key)
    if not isinstance(role, str):
        raise _UnreadableError(f"{where}.{role_key} must be a string, not {type(role).__name__}")
    calls = bool(item.get("tool_calls") or item.get("function_call"))
    if text_key not in item and not calls:
        raise _UnreadableError(f"{where}.{text_key} must be a string, and there is none")
    message = _message(role, _text(item.get(text_key), f"{where}.{text_key}"))
    return {"role": _TOOL_CALL, "content": message["content"]} if calls and message["role"] == "assistant" else message


def _message(role: str, text: str) -> Message:
    role = _TALK.get(role) or _TOOLS.get(role, role)
    # The text of a function_call is the call itself: nothing that anybody said.
    return {"role": role, "content": "" if role == _TOOL_CALL else text}


def _text(content: object, where: str) -> str:
    """Message content: a string, null (nothing said), or a list of text parts, joined by line feeds as vLLM does."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise _UnreadableError(f"{where} must be a string, not {type(content).__name__}")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if kind in _TEXT_PARTS and isinstance(part, dict) else part
        if not isinstance(text, str):
            shown = repr(kind[:40]) if isinstance(kind, str) else type(kind).__name__
            raise _UnreadableError(f"{where}[{number}] is no text but of type {shown}; only text can be read")
        texts.append(text)
    return "\n".join(texts)


def _lead(raw: Raw, keys: Sequence[str]) -> Messages:
    """What comes before the answer: `system`, `history`, and what the first of `keys` that is not null asks."""
    key = next((key for key in keys if raw.get(key) is not None), None)
    if key is None:
        return []
    value = _instruction(raw) if key == "instruction" else raw[key]
    asked = [_user(value)] if isinstance(value, str) else _messages(value, key)
    return _with_system(raw, [*_history(raw), *asked])


def _instruction(raw: Raw) -> object:
    """`instruction` and `input` as LLaMA-Factory and the Alpaca authors join them: one line feed, blank ones left out."""
    instruction, more = raw["instruction"], raw.get("input")
    if not isinstance(instruction, str) or not isinstance(more, str) or not more.strip():
        return instruction
    return f"{instruction}\n{more}" if instruction.strip() else more


def _history(raw: Raw) -> Messages:
    history = raw.get("history")
    if history is None or history == "":
        return []
    if not isinstance(history, list):
        raise _UnreadableError(f"history must be a list of [question, answer], not {type(history).__name__}")
    messages: Messages = []
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _UnreadableError(f"history[{number}] must be [question, answer]")
        messages += (_user(pair[0]), _answer(pair[1]))
    return messages


def _with_system(raw: Raw, messages: Messages) -> Messages:
    system = raw.get("system")
    if not isinstance(system, str) or not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _dialogue_before(raw: Raw) -> Messages:
    """The dialogue beside a pair, without the answer if it holds one: it is the chosen one, or part of it."""
    key = next((key for key in ("conversations", "messages") if raw.get(key) is not None), None)
    messages = [] if key is None else _messages(raw[key], key)
    return _with_system(raw, messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)


def _continued(prompt: Messages, value: object, name: str) -> Messages:
    """The whole dialogue that ends in one answer: prompt + answer, or the answer's own list where it holds the prompt."""
    if isinstance(value, str):
        if not prompt:
            raise _UnreadableError(f"{name} is a string, and there is no prompt")
        return [*prompt, _answer(value)]
    messages = _messages([value] if isinstance(value, dict) else value, name)
    if len(messages) < 2 or messages[0]["role"] not in ("system", "user"):
        return [*prompt, *messages]
    system = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
    if not _holds(messages, prompt[len(system) :]):
        return [*prompt, *messages]
    return messages if messages[0]["role"] == "system" else [*system, *messages]


def _holds(messages: Messages, prompt: Messages) -> bool:
    """Whether `prompt` stands in `messages` where it can: after a system message at the start, or right before the answer."""
    first = 1 if messages[0]["role"] == "system" else 0
    last = len(messages) - 1 - len(prompt)
    return any(messages[start : start + len(prompt)] == prompt for start in (first, last) if first <= start <= last)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _string(raw: Raw, key: str) -> str:
    value = raw[key]
    if not isinstance(value, str):
        raise _UnreadableError(f"{key} must be a string, not {type(value).__name__}")
    return value


def _swift_rejected(raw: Raw) -> str | None:
    value = raw.get("rejected_response")
    return value if isinstance(value, str) and value else None


def _user_text(messages: Messages) -> str:
    return "\n".join(one["content"] for one in messages if one["role"] == "user" and one["content"].strip())


def _asked_text(value: object) -> str:
    """What one field asks: a string, or what the user says in a list of messages; "" where it is neither."""
    if isinstance(value, str):
        return value if value.strip() else ""
    try:
        return _user_text(_messages(value, ""))
    except _UnreadableError:
        return ""


def _strings(value: object) -> list[str]:
    """The strings in a field: itself, a list's, a table's, or those of the list of texts in {"text": […], "label": […]}."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _some(raw: Raw) -> str:
    names = ", ".join(repr(key[:40]) for key in list(raw)[:6])
    return (names or "none") + (", …" if len(raw) > 6 else "")
