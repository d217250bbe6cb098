"""An Ollama Modelfile says what the chat template says, in Ollama's syntax."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import UsageError
from llmkit.gguf.modelfile import modelfile
from llmkit.gguf.rendering import Conversation, render

SHIPPED = Path(__file__).parents[2] / "llmkit" / "engine" / "chat_templates"
# name → (bos, eos, whether the runtime adds bos)
TOKENS = {
    "chatml": ("", "<|im_end|>", False),
    "gemma": ("<bos>", "<end_of_turn>", True),
    "llama2": ("<s>", "</s>", True),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", True),
    "mistral": ("<s>", "</s>", False),
    "phi3": ("", "<|end|>", False),
    "qwen": ("", "<|im_end|>", False),
}
USER, ANSWER = ("user", "How are\nyou? {{ .System }}"), ("assistant", '"Fine", 谢谢')
SYSTEM = ("system", "Be brief.")
CONVERSATIONS = ((USER,), (SYSTEM, USER), (USER, ANSWER, USER), (SYSTEM, USER, ANSWER, USER, ANSWER, USER))
Messages = Sequence[tuple[str, str]]


@pytest.mark.parametrize("family", TOKENS)
def test_a_shipped_template_prompts_alike_in_go_and_in_jinja(family: str) -> None:
    bos, eos, adds = TOKENS[family]
    jinja = (SHIPPED / f"{family}.jinja").read_text("utf-8")
    text = modelfile("model-q8_0.gguf", template=jinja, stops=[eos], context=512, licence=None, bos=bos, adds_bos=adds)
    asked = [Conversation(one, generation_prompt=True) for one in CONVERSATIONS]
    expected = [
        one.text.removeprefix(bos if adds else "") for one in render(jinja, asked, {"bos_token": bos, "eos_token": eos})
    ]
    assert all(expected)
    go = dict(parse(text))["template"]
    assert [execute(go, one) for one in CONVERSATIONS] == expected


DEFAULTED = (
    "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_default_system_prompt_goes_along() -> None:
    go = dict(parse(modelfile("m.gguf", template=DEFAULTED, stops=[], context=1, licence=None)))["template"]
    assert execute(go, [USER]) == f"<|system|>Be kind.<|end|><|user|>{USER[1]}<|end|><|assistant|>"
    assert execute(go, [SYSTEM, USER]) == f"<|system|>Be brief.<|end|><|user|>{USER[1]}<|end|><|assistant|>"


def test_where_a_system_prompt_is_refused_it_opens_the_first_turn() -> None:
    go = dict(parse(modelfile("m.gguf", template=REFUSING, stops=[], context=1, licence=None)))["template"]
    assert execute(go, [SYSTEM, USER]) == f"<|user|>Be brief.\n\n{USER[1]}<|end|><|assistant|>"


def test_it_names_the_file_its_stops_its_window_and_its_licence() -> None:
    text = modelfile("model-q4_k_m.gguf", template="", stops=["</s>", "<|end|>", "</s>"], context=2048, licence="apache-2.0")
    assert parse(text) == [
        ("from", "./model-q4_k_m.gguf"),
        ("parameter stop", "</s>"),
        ("parameter stop", "<|end|>"),
        ("parameter num_ctx", "2048"),
        ("license", "apache-2.0"),
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",  # loses what follows
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",  # says all twice
        "{{ strftime_now('%d %b') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>",  # another day
        "{{ raise_exception('no') }}",
        "{% for m in messages %}\u200b{{ m.content }}{% endfor %}",  # Ollama's parser drops what does not print
        "{% for",
    ],
)
def test_a_template_without_a_counterpart_is_left_out_and_told_of(template: str) -> None:
    text = modelfile("m.gguf", template=template, stops=[], context=1, licence=None)
    assert [name for name, _ in parse(text)] == ["from", "parameter num_ctx"]
    assert "no counterpart" in text


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/passwd", 'm".gguf', "m\nFROM x.gguf", ""])
def test_a_name_that_would_say_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name"):
        modelfile(name, template="", stops=[], context=1, licence=None)


@given(stops=st.lists(st.text(min_size=1, max_size=12), max_size=3), licence=st.text(max_size=40))
@settings(max_examples=300)
def test_no_stop_and_no_licence_adds_an_instruction(stops: list[str], licence: str) -> None:
    """Whatever they hold; what the syntax cannot hold is left out, the rest comes back as it was."""
    text = modelfile("m.gguf", template="", stops=stops, context=7, licence=licence)
    found = parse(text)
    assert {name for name, _ in found} <= {"from", "parameter stop", "parameter num_ctx", "license"}
    assert {value for name, value in found if name == "parameter stop"} <= set(stops)
    assert [value for name, value in found if name == "from"] == ["./m.gguf"]


def parse(text: str) -> list[tuple[str, str]]:
    """Ollama's own reading (parser/parser.go): a value may be quoted, ends with its line, or with its closing quotes."""
    found: list[tuple[str, str]] = []
    name, value = "", ""
    for line in text.split("\n"):
        if name:
            value += "\n" + line
        elif not line.strip() or line.startswith("#"):
            continue
        else:
            match = re.fullmatch(r"([A-Z]+ (?:(?<=PARAMETER )[a-z_]+ )?)(.*)", line)
            assert match, line
            name, value = match[1].strip().lower(), match[2]
        done = unquote(value.strip())
        if done is not None:
            found.append((name, "".join(letter for letter in done if letter.isprintable() or letter in "\n\t")))
            name, value = "", ""
    assert not name, "the file ends within a value"
    return found


def unquote(value: str) -> str | None:
    if value.startswith('"""'):
        return value[3:-3] if len(value) >= 6 and value.endswith('"""') else None
    if value.startswith('"'):
        return value[1:-1] if len(value) >= 2 and value.endswith('"') else None
    return value


def execute(template: str, messages: Messages) -> str:
    """As much of Go's text/template as these need: if, else, range, eq on a role, string literals and fields."""
    tokens: list[tuple[bool, str]] = []
    trim = False
    for index, part in enumerate(re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)):
        if index % 2 == 0:
            tokens.append((False, part.lstrip() if trim else part))
            continue
        if part.startswith("- ") and tokens:
            tokens[-1] = (False, tokens[-1][1].rstrip()) if not tokens[-1][0] else tokens[-1]
        trim = part.endswith(" -")
        tokens.append((True, part.strip(" -")))
    system = "\n\n".join(said for role, said in messages if role == "system")
    nodes, rest = _block(tokens)
    assert not rest
    return _run(nodes, {"System": system, "Messages": messages})


def _block(tokens: list[tuple[bool, str]]) -> tuple[list[Any], list[tuple[bool, str]]]:
    nodes: list[Any] = []
    while tokens:
        action, text = tokens[0]
        if action and (text == "end" or text.startswith("else")):
            return nodes, tokens
        tokens = tokens[1:]
        if action and text.startswith(("if ", "range ")):
            body, tokens = _block(tokens)
            other: list[Any] = []
            if tokens[0][1] == "else":
                other, tokens = _block(tokens[1:])
            elif tokens[0][1].startswith("else "):
                other, tokens = _block([(True, tokens[0][1].removeprefix("else ")), *tokens[1:]])
                tokens = [(True, "end"), *tokens]
            assert tokens[0][1] == "end"
            tokens = tokens[1:]
            nodes.append((text, body, other))
        else:
            nodes.append((text, None, None) if action else text)
    return nodes, tokens


def _run(nodes: list[Any], scope: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
            continue
        text, body, other = node
        if text.startswith("range "):
            assert text == "range $index, $message := .Messages"
            turns = scope["Messages"]
            for index, (role, said) in enumerate(turns):
                out += _run(body, {**scope, "Role": role, "Content": said, "last": index == len(turns) - 1})
        elif text.startswith("if "):
            out += _run(body if _true(text.removeprefix("if "), scope) else other, scope)
        elif text.startswith('"'):
            out += json.loads(text)
        elif not text.startswith("$last :="):
            out += scope[text.removeprefix(".")]
    return out


def _true(condition: str, scope: dict[str, Any]) -> bool:
    if condition == "not $last":
        return not scope["last"]
    if condition.startswith("eq .Role "):
        return bool(scope["Role"] == json.loads(condition.removeprefix("eq .Role ")))
    return bool(scope[condition.removeprefix(".")])
