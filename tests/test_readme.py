"""The README is short, and its map of the code is that of the code. Its commands run in tests/test_docs.py."""

import re
from pathlib import Path

import pytest

from tests import documented

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_readme_shows_every_command() -> None:
    shown = {documented.command_of(one.words[1:]) for one in documented.shown("README.md", README) if one.words[0] == "llmkit"}
    assert shown == documented.commands().keys()


def test_the_map_of_the_code_names_what_is_there() -> None:
    named = set(re.findall(r"^  (\w+\.py|\w+/) ", README, re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "llmkit").iterdir() if path.name[0] not in "_."}
    assert named == there


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_a_readme_is_read_in_one_sitting(name: str) -> None:
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= 200


def test_both_readmes_print_the_same_table() -> None:
    chinese = documented.blocks((ROOT / "README.zh.md").read_text("utf-8"), "")
    english = documented.blocks(README, "")[0]
    assert chinese
    assert english.startswith(chinese[0])


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w./-]+\.md)", README + (ROOT / "README.zh.md").read_text("utf-8")))
    assert {str(path.relative_to(ROOT)) for path in documented.DOCS.rglob("*.md")} == linked
