"""A tiny model that chats, as a folder and as GGUF files, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.engine import templates


@pytest.fixture(scope="session")
def tiny_chat(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with ChatML as its own template."""
    folder = tmp_path_factory.mktemp("tiny-chat") / "tiny"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(templates.resolve("chatml", tiny_model).text, "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_gguf("f32")`: its file of that type; `tiny_gguf("bare")`: f32 without a template."""
    from llmkit.gguf.convert import export

    folder = tmp_path_factory.mktemp("tiny-gguf")

    def make(kind: str) -> Path:
        out = folder / f"tiny-{kind}.gguf"
        if not out.exists():
            template = "" if kind == "bare" else (tiny_chat / "chat_template.jinja").read_text("utf-8")
            export(tiny_chat, out, type="f32" if kind == "bare" else kind, template=template, name="tiny", pre="gpt-2")
        return out

    return make
