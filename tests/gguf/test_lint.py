"""Each fault that a GGUF file can have is found in a file made whole but for it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.gguf import container, lint, rendering
from llmkit.gguf.lint import Finding, Severity
from llmkit.gguf.rendering import Conversation, Rendering
from tests.gguf.conftest import CHATML

TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|x|>", *(chr(97 + index) for index in range(10))]
TYPES = [2, 3, 3, 3, 3, 3, *[1] * 10]
WHOLE: dict[str, Any] = {
    "general.type": "model",
    "general.file_type": 7,
    "llama.context_length": 64,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": CHATML,
}
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def write(path: Path, changes: dict[str, Any], rows: int = len(TOKENS), width: int = 32) -> Path:
    """A GGUF file of one matrix; a change to None leaves a key out."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (WHOLE | changes).items():
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    writer.add_tensor("token_embd.weight", np.ones((rows, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def found(path: Path) -> list[Finding]:
    return lint.lint(container.open_split(path))


def test_a_whole_file_has_nothing_amiss(tmp_path: Path) -> None:
    assert found(write(tmp_path / "m.gguf", {})) == []


TEMPLATE, EOT = "tokenizer.chat_template", "tokenizer.ggml.eot_token_id"
ODD_END = CHATML.replace("<|im_end|>", "<|x|>")
NO_PROMPT = CHATML.partition("{% if add_generation_prompt")[0]
ALWAYS = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("check", "severity", "changes", "says"),
    [
        ("chat-template", "error", {TEMPLATE: None}, "no chat template"),
        ("chat-template", "error", {TEMPLATE: "{% for m in messages %}"}, "fails on a plain exchange"),
        ("chat-template", "error", {TEMPLATE: "{{ raise_exception('only tools') }}"}, "only tools"),
        ("chat-template", "error", {TEMPLATE: "{{ messages.__class__.__mro__ }}"}, "fails on a plain exchange"),
        ("chat-template", "error", {TEMPLATE: "{{ messages[0].content }}"}, "leaves out"),
        ("generation-prompt", "error", {TEMPLATE: NO_PROMPT}, "assistant"),
        ("generation-prompt", "warning", {TEMPLATE: ALWAYS}, "even where add_generation_prompt is false"),
        ("stopping", "error", {TEMPLATE: ODD_END}, "ends an answer with <|x|>"),
        ("stopping", "error", {TEMPLATE: CHATML.replace("<|im_end|>", "")}, "ends an answer with nothing"),
        ("stopping", "error", {TEMPLATE: CHATML.replace("<|im_end|>", "[end]")}, "begins with no special token"),
        ("eos", "error", {"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
        ("eos", "error", {"tokenizer.ggml.eos_token_id": 99}, "no such token"),
        ("eos", "error", {"tokenizer.ggml.eos_token_id": "4"}, "no such token"),
        ("eos-in-prompt", "error", {"tokenizer.ggml.add_eos_token": True}, "add_eos_token is true"),
        ("pre-tokenizer", "error", {"tokenizer.ggml.pre": None}, "is missing"),
        ("pre-tokenizer", "warning", {"tokenizer.ggml.pre": "default"}, "is default"),
        ("context-length", "error", {"llama.context_length": 0}, "missing or 0"),
        ("context-length", "error", {"llama.context_length": None}, "missing or 0"),
        ("vocabulary", "error", {"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ("unpadded-vocabulary", "error", {"tokenizer.ggml.tokens": TOKENS[:-1]}, "15 tokens, the embedding 16 rows"),
        ("token-types", "error", {"tokenizer.ggml.token_type": TYPES[:-1]}, "15 token types for 16 tokens"),
        ("control-tokens", "error", {"tokenizer.ggml.token_type": [2, 3, 3, 1, 1, *TYPES[5:]]}, "<|im_start|> is typed NORMAL"),
        ("unknown-tokens", "warning", {TEMPLATE: "<|start_header_id|>" + CHATML}, "<|start_header_id|>"),
        ("double-bos", "note", {TEMPLATE: "{{ bos_token }}" + CHATML, "tokenizer.ggml.add_bos_token": True}, "adds <s>"),
        ("double-bos", "warning", {TEMPLATE: "{{ bos_token }}<s>" + CHATML}, "twice"),
        ("sliding-window", "warning", {"llama.attention.sliding_window": 16}, "ignores this model's sliding window of 16"),
        ("fallback-types", "warning", {"general.file_type": 15}, "rows that q4_k_m cannot hold"),
    ],
)  # fmt: skip
def test_a_fault_is_found_and_explained(check: str, severity: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    one = next(one for one in found(write(tmp_path / "m.gguf", changes)) if one.check == check)
    assert (one.severity, says in one.what) == (severity, True)
    assert one.why
    assert one.fix


@pytest.mark.parametrize(
    "changes",
    [
        {TEMPLATE: INST, "tokenizer.ggml.eos_token_id": 2},  # opens no turn, and none is missing
        {TEMPLATE: ODD_END, EOT: 5},  # stops by its id
        {TEMPLATE: CHATML, "tokenizer.ggml.eos_token_id": 2},  # stops by its text
        {TEMPLATE: CHATML.replace("'<|im_end|>", "'  <|im_end|>")},  # space before the end
        {"general.file_type": 15, "width": 256},
        {"llama.attention.sliding_window": 64},  # as wide as the context
    ],
)
def test_what_is_right_is_left_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    width = changes.pop("width", 32)
    assert found(write(tmp_path / "m.gguf", changes, width=width)) == []


def test_an_adapter_needs_no_vocabulary(tmp_path: Path) -> None:
    assert found(write(tmp_path / "a.gguf", {"general.type": "adapter", "tokenizer.ggml.tokens": None, TEMPLATE: None})) == []


@pytest.mark.parametrize("family", ["llama3", "gemma3"])
def test_what_llmkit_exports_has_no_error(family: str, exported: Callable[..., Path]) -> None:
    assert [one for one in found(exported(family, "q8_0")) if one.severity is Severity.ERROR] == []


@pytest.mark.parametrize(
    "template", [LOOP, "{{ 'a' * 10**10 }}", "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}", "{{ 'a' * 10**6 }}"]
)
def test_a_template_that_never_ends_or_grows_is_cut_off(template: str) -> None:
    started = time.monotonic()
    (made,) = rendering.render(template, [Conversation((("user", "a"),), generation_prompt=True)], {})
    assert made.error
    assert not made.text
    assert time.monotonic() - started < 30


def test_a_template_runs_apart_from_us() -> None:
    """Neither Python's insides nor files are within its reach."""
    for template in (
        "{{ ''.__class__ }}",
        "{% include '/etc/passwd' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
    ):
        (made,) = rendering.render(template, [Conversation((), generation_prompt=True)], {})
        assert made.error or made == Rendering("")


def test_conversations_render_as_transformers_renders_them() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    messages = (("system", "S"), ("user", "<你好>"), ("assistant", "🙂"))
    told = [{"role": role, "content": content} for role, content in messages]
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    for template in (
        CHATML,
        INST,
        "{{ messages | tojson }}",
        "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}{{ m.content }}\n{% endfor %}",
    ):
        (made,) = rendering.render(
            template, [Conversation(messages, generation_prompt=True)], {"eos_token": "</s>", "bos_token": ""}
        )
        expected = bare.apply_chat_template(told, chat_template=template, tokenize=False, add_generation_prompt=True)
        assert made.text == expected


ODD = (
    st.none()
    | st.booleans()
    | st.integers(0, 2**32 - 1)
    | st.floats(width=32)
    | st.text(max_size=8)
    | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4)
)


@given(key=st.sampled_from(sorted(set(WHOLE) - {TEMPLATE})), value=ODD)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_any_key_brings_the_linter_down(
    key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lint, "render", lambda template, conversations, tokens: [Rendering(error="not now")] * 3)
    parts = container.open_split(write(tmp_path / "m.gguf", {key: value}))
    assert {one.severity for one in lint.lint(parts)} <= set(Severity)
    assert lint.describe(parts)["tensors"] == 1


def test_sizes_and_types_add_up(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"general.quantization_version": float("nan")})
    told = lint.describe(container.open_split(path))
    assert told["types"] == {"F32": {"tensors": 1, "bytes": 16 * 32 * 4}}
    assert (told["parameters"], told["bits_per_weight"], told["file_type"]) == (512, 32.0, "q8_0")
    assert told["metadata"]["general.quantization_version"] == "nan"
    assert told["metadata"]["tokenizer.ggml.tokens"] == TOKENS
    assert told["files"] == [{"path": str(path), "bytes": path.stat().st_size}]
