"""The README tells the truth: its recipe validates, and its commands run, in the order they stand there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmkit.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [
        line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line.startswith("$ llmkit")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_readme_shows_every_command() -> None:
    shown = {command[0] for command in commands()}
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert known | {"recipes"} == shown


def test_the_map_of_the_code_names_what_is_there() -> None:
    root = Path(__file__).parent.parent / "llmkit"
    named = set(re.findall(r"^  (\w+\.py|\w+/) ", README, re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in root.iterdir() if path.name[0] not in "_."}
    assert named == there


def test_every_command_in_the_readme_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, "my-model")
    [recipe] = blocks("yaml")
    Path("my-chat.yaml").write_text(recipe, encoding="utf-8")
    animals = ["cat", "dog", "fish", "bird", "horse", "sheep", "猫", "狗", "鱼", "鸟"]
    chats = [
        {"messages": [{"role": "user", "content": f"{name} {n * 977}?"}, {"role": "assistant", "content": f"{n * 31} {name}!"}]}
        for n, name in enumerate(animals * 3)
    ]
    Path("chats.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    for name in ("answers", "expected"):
        Path(f"{name}.jsonl").write_text('{"id": "1", "text": "今天天气很好。"}\n')
    for command in commands():
        if "quickstart" in command and command[0] == "run":
            continue  # minutes: tests/test_chain.py runs it
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, f"llmkit {shlex.join(command)}: {result.output}"
