"""An Ollama `Modelfile` for an exported GGUF file. Knows Ollama's syntax and templates; reads and writes no file.

Ollama does not run a GGUF's Jinja template: it looks for a known template within an edit distance of 100 (its
template/index.json) and otherwise hands the prompt over as it is. So a Go template is written here, read off what the Jinja
template makes of two conversations, and left out where those do not determine it.
Syntax: https://docs.ollama.com/modelfile and parser/parser.go; template variables: template/template.go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from llmkit.errors import UsageError
from llmkit.gguf.rendering import Conversation, render

# Words no template holds.
_SYSTEM, _QUESTION, _ANSWER, _MORE = "Sarvodel", "Kadlimerre", "Vospentil", "Drumbalice"
_PLAIN = (("user", _QUESTION), ("assistant", _ANSWER), ("user", _MORE))
_CONVERSATIONS = (
    Conversation(_PLAIN, generation_prompt=True),
    Conversation((("system", _SYSTEM), *_PLAIN), generation_prompt=True),
)


def modelfile(
    path_name: str,
    *,
    template: str,
    stops: Sequence[str],
    context: int,
    licence: str | None,
    bos: str = "",
    adds_bos: bool = True,
) -> str:
    """The text of a `Modelfile` to stand beside the GGUF file `path_name`.

    Args:
        path_name: the file's name, without a folder.
        template: the Jinja chat template; "" for none.
        stops: the texts of the tokens that end an answer, the tokenizer's own EOS first.
        context: the window to run with, in tokens.
        licence: its name or whole text.
        bos: the text of the token that begins a prompt, where the template may write it.
        adds_bos: whether the runtime puts `bos` before a prompt by itself (tokenizer.ggml.add_bos_token).

    Raises:
        UsageError: a name that a Modelfile cannot hold.
        MachineError: no process could be started to render the template in.
    """
    lines = [f"FROM {_beside(path_name)}"]
    turns = _turns(template, bos=bos, eos=stops[0] if stops else "", adds_bos=adds_bos) if template else None
    written = _quoted(_go(turns)) if turns else None
    if written:
        lines.append(f"TEMPLATE {written}")
    elif template:
        lines.append("# This chat template has no counterpart in Go's: see what `ollama show --template` makes of it.")
    lines += [f"PARAMETER stop {text}" for stop in dict.fromkeys(stops) if (text := _quoted(stop))]
    lines.append(f"PARAMETER num_ctx {context}")
    if licence:
        lines.append(f"LICENSE {_quoted(_printable(licence.replace(_FENCE, chr(39) * 3)))}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Turns:
    """What stands around the words of a conversation.

    `opening` question `asked` [`answering` answer `answered` question `asked`]…; with a system prompt, `system_opening`
    system `system_closing` in place of `opening`.
    """

    opening: str
    asked: str
    answering: str
    answered: str
    system_opening: str
    system_closing: str


def _turns(template: str, *, bos: str, eos: str, adds_bos: bool) -> _Turns | None:
    """None where a conversation is not its words between fixed texts, the same with a system prompt and without."""
    plain, led = render(template, _CONVERSATIONS, {"bos_token": bos, "eos_token": eos})
    words = (_QUESTION, _ANSWER, _MORE)
    found, foundled = _around(plain.text, words), _around(led.text, (_SYSTEM, *words))
    if found is None:
        return None
    opening, between, answered, asked = found
    if not between.startswith(asked) or ("strftime_now" in template and "%" in plain.text):  # the day is not fixed text
        return None
    if foundled is None:  # it refuses a system prompt: as `FOLD` does, let it open the first turn
        foundled = (opening, "\n\n", between, answered, asked)
    if foundled[2:] != (between, answered, asked):
        return None
    first = bos if adds_bos else ""
    return _Turns(
        opening.removeprefix(first),
        asked,
        between.removeprefix(asked),
        answered,
        foundled[0].removeprefix(first),
        foundled[1],
    )


def _around(text: str, words: Sequence[str]) -> tuple[str, ...] | None:
    """`text` cut at `words`, each of which must stand in it once and in order."""
    parts = []
    for word in words:
        if text.count(word) != 1:
            return None
        before, _, text = text.partition(word)
        parts.append(before)
    return (*parts, text)


def _go(turns: _Turns) -> str:
    """As a Go template. `.System` holds every system prompt; `.Messages` hold them too, and are passed over."""
    opening, system_opening, system_closing = map(_literal, (turns.opening, turns.system_opening, turns.system_closing))
    return (
        f"{{{{ if .System }}}}{system_opening}{{{{ .System }}}}{system_closing}{{{{ else }}}}{opening}{{{{ end }}}}"
        "{{- range $index, $message := .Messages }}"
        "{{- $last := eq (len (slice $.Messages $index)) 1 }}"
        f'{{{{- if eq .Role "user" }}}}{_text("{{ .Content }}", turns.asked)}'
        f'{{{{- else if eq .Role "assistant" }}}}{_text(turns.answering, "{{ .Content }}")}'
        f"{{{{ if not $last }}}}{_literal(turns.answered)}{{{{ end }}}}"
        "{{- end }}{{- end }}"
    )


def _text(*parts: str) -> str:
    return "".join(part if part == "{{ .Content }}" else _literal(part) for part in parts)


def _literal(text: str) -> str:
    """Fixed text as an action: its own spaces and braces are then safe from the template's."""
    if not text:
        return ""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")
    return f'{{{{ "{escaped}" }}}}'


_FENCE = '"' * 3


def _quoted(text: str) -> str | None:
    """A value between quotes, which the parser takes off again; None where it would drop or end on some of it."""
    if _FENCE in text or text.endswith('"') or _printable(text) != text:
        return None
    return f"{_FENCE}{text}{_FENCE}" if '"' in text or "\n" in text else f'"{text}"'


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def _beside(name: str) -> str:
    if not name or PurePath(name).name != name or not name.isprintable() or '"' in name:
        raise UsageError(f"a Modelfile cannot name {name!r}", code="LK0625", next="name a file beside it, without quotes")
    return f'"./{name}"' if " " in name else f"./{name}"
