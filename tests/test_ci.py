"""The CI files of docs/ are YAML of the right shape, and every llmkit command in them exists with its options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from llmkit.cli import app

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "ci.md").read_text("utf-8")


def loaded(name: str) -> Any:
    return yaml.safe_load((DOCS / name).read_text("utf-8"))


def scripts() -> list[str]:
    steps = loaded("github-workflow.yml")["jobs"]["evaluate"]["steps"]
    shown = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    return [*(step["run"] for step in steps if "run" in step), *loaded("gitlab-ci.yml")["llmkit"]["script"], *shown]


def commands() -> list[list[str]]:
    lines = [line.removeprefix("$ ") for script in scripts() for line in script.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("llmkit ")]


def test_there_are_commands_to_check() -> None:
    assert {command[0] for command in commands()} == {"eval", "compare"}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_that_llmkit_reads(command: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *arguments = command
    context = group.commands[name].make_context(name, arguments)
    assert not context.args


def test_the_workflow_publishes_what_eval_writes_even_where_the_gate_fails() -> None:
    steps = loaded("github-workflow.yml")["jobs"]["evaluate"]["steps"]
    names = [step.get("name") for step in steps]
    later = steps[names.index("Evaluate") + 1 :]
    assert all(step["if"].startswith("always()") for step in later)
    assert [step["uses"].partition("@")[0] for step in later if "uses" in step] == [
        "actions/cache/save",
        "actions/upload-artifact",
    ]
    paths = later[-1]["with"]["path"].splitlines()
    assert [path.rpartition("/")[2] for path in paths] == ["report.html", "report.md", "junit.xml"]
    job = loaded("gitlab-ci.yml")["llmkit"]
    assert job["artifacts"]["reports"]["junit"].endswith("eval/junit.xml")
    assert job["artifacts"]["when"] == "always"


def test_the_gate_in_the_text_is_one_that_a_recipe_may_have() -> None:
    from llmkit.steps.eval import Config

    [block] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert Config.model_validate(yaml.safe_load(block)["eval"]).gate  # type: ignore[attr-defined]


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (DOCS / target).is_file()
