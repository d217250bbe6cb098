"""Chat templates: found, checked without torch, and rendered as Google and Qwen do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.engine import templates
from llmkit.errors import DataError, UsageError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " 你好 \n"},
    {"role": "assistant", "content": "Hello! "},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder with Gemma's special tokens."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("gemma-like")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.save_pretrained(folder)
    return folder


def with_template(folder: Path, to: Path, text: str) -> Path:
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").write_text(text, "utf-8")
    return to


def test_gemma_folds_the_system_prompt_into_the_first_user_turn(gemma_like: Path) -> None:
    template = templates.resolve("gemma", gemma_like)
    tokenizer = AutoTokenizer.from_pretrained(gemma_like)
    assert template.eos == "<end_of_turn>"
    assert templates.render(CHAT, tokenizer, template, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\n你好<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_chatml_renders_every_role(tiny_model: Path) -> None:
    template = templates.resolve("chatml", tiny_model)
    assert template.eos == "<|im_end|>"
    assert templates.render(CHAT, AutoTokenizer.from_pretrained(tiny_model), template) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )


def test_a_model_without_a_template_names_those_that_fit(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        templates.check("model", tiny_model)
    assert "finetune.template" in caught.value.next
    assert "fit chatml" in caught.value.next


def test_a_template_whose_turn_end_is_no_single_token_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"<end_of_turn>.*no single special token"):
        templates.check("gemma", tiny_model)


@pytest.mark.parametrize("name", ["chatm1", "no-such.jinja", "/", "."])
def test_an_unknown_template_is_refused_with_or_without_a_model(name: str, tiny_model: Path) -> None:
    for folder in (None, tiny_model):
        with pytest.raises(UsageError) as caught:
            templates.check(name, folder)
        assert "chatml, gemma" in caught.value.next


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean chatml"):
        templates.check("chatlm", None)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }",
        "{{ raise_exception('never') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[7]['content'] }}<|im_end|>",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10000000000) %}{% endfor %}",
        "nothing of the conversation",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    ],
)
def test_a_broken_template_is_a_clear_error(text: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        templates.resolve("model", with_template(tiny_model, tmp_path / "model", text))


def test_the_turn_end_is_read_off_the_template(tiny_model: Path, tmp_path: Path) -> None:
    text = (
        "{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content }} {{ eos_token }}\n{% endgeneration %}{% endfor %}"
    )
    assert templates.resolve("model", with_template(tiny_model, tmp_path / "model", text)).eos == "<|endoftext|>"


def test_a_template_inside_tokenizer_config_is_found(tiny_model: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_model, tmp_path / "model", "")
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    text = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    for spelled in (text, [{"name": "tool", "template": "x"}, {"name": "default", "template": text}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": spelled}))
        assert templates.resolve("model", folder).text == text


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_damaged_tokenizer_is_a_clear_error(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_model, tmp_path / "model", "{{ messages[0].content }}")
    (folder / name).write_bytes(b'{"added_tokens": [\xff')
    with pytest.raises(UsageError):
        templates.check("model", folder)


def test_a_conversation_the_template_refuses_is_a_data_error(gemma_like: Path) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(gemma_like), templates.resolve("gemma", gemma_like)
    with pytest.raises(DataError, match="alternate"):
        templates.render([CHAT[2]], tokenizer, template)


REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS = REFUSES.replace("{{ raise_exception('System role not supported') }}", "{% set messages = messages[1:] %}")
# Mistral's own: it stands in the last user turn, and nowhere once that is answered.
WANDERS = (
    "{% set told = messages[0]['role'] == 'system' %}{% for m in (messages[1:] if told else messages) %}"
    "<|im_start|>{{ m.role }}\n{% if told and loop.last and m.role == 'user' %}{{ messages[0]['content'] }}\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("text", [REFUSES, DROPS, WANDERS])
def test_a_system_prompt_that_a_template_would_lose_opens_the_first_user_turn(
    text: str, tiny_model: Path, tmp_path: Path
) -> None:
    template = templates.resolve("model", with_template(tiny_model, tmp_path / "model", text))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert template.folds_system
    assert templates.render(CHAT, tokenizer, template, add_generation_prompt=True) == (
        "<|im_start|>user\nBe brief.\n\n你好<|im_end|>\n<|im_start|>assistant\nHello! <|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_folding_template_is_shipped_as_it_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    """Saved with the model and found there again, it is the same text, and needs nothing more."""
    template = templates.resolve("model", with_template(tiny_model, tmp_path / "base", REFUSES))
    again = templates.resolve("model", with_template(tiny_model, tmp_path / "merged", template.text))
    assert (again.text, again.folds_system) == (template.text, False)


@pytest.mark.parametrize("name", ["cohere", "gemma", "llama3_1", "phi3", "qwen3"])
def test_without_a_system_prompt_folding_changes_no_byte(name: str, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    for prefix in ("", "\n", "  ", "  {% if true %}\n  x{% endif %}", "{# y #}\n"):
        plain, folded = (_written(tokenizer, before + prefix + text) for before in ("", templates.FOLD))
        assert plain == folded


def _written(tokenizer: Any, text: str) -> str:
    return str(tokenizer.apply_chat_template(CHAT[1:3], chat_template=text, tokenize=False, bos_token="<s>"))


def test_probing_renders_as_transformers_does(tiny_model: Path) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(tiny_model), templates.resolve("chatml", tiny_model)
    ours = templates._compile(template.text, where="").render(messages=CHAT, add_generation_prompt=True)
    assert ours == templates.render(CHAT, tokenizer, template, add_generation_prompt=True)


def test_checking_needs_neither_torch_nor_transformers(tiny_model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llmkit.engine import templates;"
        f"templates.check('chatml', Path({str(tiny_model)!r})); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
