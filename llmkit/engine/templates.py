"""Finds the chat template and the token that ends its turns. Knows templates and tokenizer files; nothing of torch.

A template comes from the model's own tokenizer, from this package (`chat_templates/`) or from a file. Its turn-end
token is read off a probe rendering, never guessed from a name. Files are read without transformers, so that a plan
can check them in milliseconds; `render` is what training and generation use, and goes through transformers' sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmkit.errors import DataError, UsageError

# Ours by name, each with the tokens that tell a tokenizer of its family.
OURS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]", "</s>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "qwen": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
}
HOW = f"set finetune.template to {', '.join(OURS)} or the path of a .jinja file"
Message = Mapping[str, str]

# What a template can raise by itself: its own raise_exception, or an operation on values it did not expect.
_TEMPLATE_FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


# Put before a template that refuses or loses a system prompt: the prompt opens the first user turn instead. It ends on a line
# feed, which Jinja's trim_blocks takes off again, so that the template's own first line stays the beginning of a line.
FOLD = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] | trim + '\\n\\n' + messages[1]['content'] | trim}]"
    " + messages[2:] %}{% endif %}\n"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template. `eos`: the special token it writes right after an assistant's answer.

    `folds_system`: `text` opens with `FOLD`, because the template as found refuses or loses a system prompt.
    """

    name: str
    text: str
    eos: str
    folds_system: bool = False


def check(name: str, tokenizer_dir: Path | None) -> None:
    """Fail now rather than after the expensive part: `resolve` where the tokenizer is known, else what can be said without.

    Raises:
        UsageError: no such template, one that does not compile, or one that does not fit the tokenizer.
    """
    if tokenizer_dir is not None:
        resolve(name, tokenizer_dir)
    elif name != "model":
        _compile(_read(name), where=name)


def resolve(name: str, tokenizer_dir: Path) -> ChatTemplate:
    """The template called `name`: `model` (the tokenizer's own), one of `OURS`, or the path of a .jinja file.

    Where it refuses a system prompt, leaves it out or lets it wander, and `FOLD` mends that, its text begins with `FOLD`:
    what is trained, saved and shipped is then one and the same text.

    Raises:
        UsageError: no such template, it fails on a plain exchange, or its turn-end is no single token of the tokenizer.
    """
    files = _TokenizerFiles(tokenizer_dir)
    if name != "model":
        text = _read(name)
    else:
        own = files.chat_template()
        if own is None:
            fitting = [ours for ours in OURS if _fits(ours, files)]
            hint = f"; its tokens fit {' and '.join(fitting)}" if fitting else ""
            raise UsageError(
                "the model's tokenizer has no chat template", code="LK0315", where=str(tokenizer_dir), next=HOW + hint
            )
        text = own
    eos = _turn_end(text, files, where=name)
    folds = not _carries_system(text, files, where=name) and _carries_system(FOLD + text, files, where=name)
    return ChatTemplate(name, FOLD + text if folds else text, eos, folds)


def render(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate, *, add_generation_prompt: bool = False) -> str:
    """`messages` as text, special tokens included: tokenize it with add_special_tokens=False.

    Raises:
        DataError: the template refuses these messages (a role it does not know, turns that do not alternate).
    """
    try:
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except _TEMPLATE_FAILURES as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template {template.name} refuses a conversation of {roles}: {error}",
            code="LK0317",
            next="clean the roles, or set finetune.template to one that takes them",
        ) from error
    return str(rendered)


def _read(name: str) -> str:
    """The text of one of ours, or of a .jinja file."""
    path = Path(__file__).parent / "chat_templates" / f"{name}.jinja" if name in OURS else Path(name)
    if name not in OURS and path.suffix != ".jinja":
        near = get_close_matches(name, ["model", *OURS], n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"no chat template is called {name}{guess}", code="LK0315", next=f"{HOW}, or to model for the model's own"
        )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the chat template: {error}", code="LK0316", where=str(path), next=HOW) from error


def _fits(name: str, files: "_TokenizerFiles") -> bool:
    """Whether the tokenizer has the tokens of the family, and ends a turn on one of them."""
    try:
        return files.added_tokens.issuperset(OURS[name]) and _turn_end(_read(name), files, where=name) in OURS[name]
    except UsageError:
        return False


def _carries_system(text: str, files: "_TokenizerFiles", *, where: str) -> bool:
    """Whether a system prompt survives two exchanges, and stands where the prompt for the first answer puts it."""
    contents = ("Sarvodel", "Kadlimerre", "Vospentil", "Drumbalice", "Nefirosk")  # words no template holds
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    compiled, tokens = _compile(text, where=where), files.named_tokens()
    try:
        whole = compiled.render(messages=messages, add_generation_prompt=False, **tokens)
        prompt = compiled.render(messages=messages[:2], add_generation_prompt=True, **tokens)
    except _TEMPLATE_FAILURES:
        return False
    places = [whole.find(content) for content in contents]
    return places[0] >= 0 and places == sorted(places) and whole.startswith(prompt)


def _turn_end(text: str, files: "_TokenizerFiles", *, where: str) -> str:
    """The special token that follows an answer, read off a rendering of one plain exchange."""
    question, answer = "Kadlimerre", "Vospentil"  # words no template holds
    compiled = _compile(text, where=where)
    try:
        rendered = compiled.render(
            messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            add_generation_prompt=False,
            **files.named_tokens(),
        )
    except _TEMPLATE_FAILURES as error:
        raise UsageError(
            f"the chat template fails on a plain exchange: {error}", code="LK0316", where=where, next=HOW
        ) from error
    if question not in rendered or answer not in rendered:
        raise UsageError("the chat template leaves out what user or assistant say", code="LK0318", where=where, next=HOW)
    tail = rendered[rendered.rindex(answer) + len(answer) :].lstrip()
    # The longest match: a token may begin another's text.
    found = max((token for token in files.added_tokens if token.strip() and tail.startswith(token)), key=len, default=None)
    if found is None:
        raise UsageError(
            f"the chat template ends an answer with {tail.strip()!r}, which is no single special token of this tokenizer",
            code="LK0318",
            where=f"{where} with {files.folder}",
            next=HOW,
        )
    return found


class _Generation(Extension):
    """`{% generation %}` marks answers for libraries that train on them; for rendering it is a plain block."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    # The settings of transformers' own renderer.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: form
    return environment


def _compile(text: str, *, where: str) -> jinja2.Template:
    try:
        return _environment().from_string(text)
    except _TEMPLATE_FAILURES as error:
        raise UsageError(f"the chat template does not compile: {error}", code="LK0316", where=where, next=HOW) from error


class _TokenizerFiles:
    """What a tokenizer's folder says of templates and special tokens, read once and without transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = self._json("tokenizer_config.json")

    def chat_template(self) -> str | None:
        try:
            return (self.folder / "chat_template.jinja").read_text("utf-8")
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read the model's chat template: {error}", code="LK0316", where=str(self.folder), next=HOW
            ) from error
        found = self._config.get("chat_template")
        if isinstance(found, list):  # several named templates; transformers, too, takes the default
            named = [entry.get("template") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
            found = named[0] if named else None
        return found if isinstance(found, str) else None

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, …: text, as a template sees them."""
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        spelled = {**self._json("special_tokens_map.json"), **self._config}
        return {name: text for name in names if (text := _content(spelled.get(name))) is not None}

    @cached_property
    def added_tokens(self) -> set[str]:
        """The text of every token that is kept whole."""
        decoder = self._config.get("added_tokens_decoder")
        listed = list(decoder.values()) if isinstance(decoder, dict) else []
        return {text for entry in [*listed, *self._listed_tokens()] if (text := _content(entry)) is not None}

    def _listed_tokens(self) -> list[Any]:
        """tokenizer.json's `added_tokens`, without parsing the vocabulary after it (33 MB for Gemma)."""
        path = self.folder / "tokenizer.json"
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the tokenizer: {error}", code="LK0307", where=str(path)) from error
        start = text.find("[", max(text.find('"added_tokens"'), 0))
        try:
            found, _ = json.JSONDecoder().raw_decode(text, max(start, 0))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the tokenizer is not JSON: {error}", code="LK0307", where=str(path)) from error
        return found if isinstance(found, list) else []

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"cannot read the tokenizer: {error}", code="LK0307", where=str(path)) from error
        return found if isinstance(found, dict) else {}


def _content(entry: Any) -> str | None:
    """A token's text: written plainly, or as an object with `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None
