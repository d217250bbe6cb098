"""The documentation tells the truth: what it names is there, what is there is named, and every command that it shows runs."""

import importlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import typing
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from docs import generate
from llmkit.cli import app
from llmkit.recipe import Recipe, validate
from tests import documented
from tests.documented import DOCS, ROOT, Shown

PAGES = documented.pages()
# Commands that a test elsewhere runs: one wants a hub, the other judges this machine.
ELSEWHERE = {"push": "tests/test_push.py", "doctor": "tests/test_doctor.py"}
# A gate on the stand-in for the quickstart may decide otherwise than on the real one, which tests/test_chain.py asks.
STAND_IN_GATE = {0, 1, 2}
# Options of other programs that the text names alone.
FOREIGN = {"--jinja", "--lora"}


def annotated(annotation: Any) -> Any:
    """The model in an annotation, as `tuple[Source, ...]` or `Gate | None`; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := annotated(inner))), None)


def recipe_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if inner := annotated(field.annotation):
            yield from recipe_keys(inner, f"{prefix}{name}.")


def tables() -> dict[str, set[str]]:
    """The options in the table of each command, over all pages."""
    found: dict[str, set[str]] = {}
    for text in PAGES.values():
        for head, body in re.findall(r"^\| `llmkit ([\w -]+)` \|.*\n\| ---.*\n((?:\|.*\n)*)", text, re.MULTILINE):
            cells = [row.split(" | ")[0] for row in body.splitlines()]
            found.setdefault(head, set()).update(name for cell in cells for name in re.findall(r"`(--?[\w-]+)", cell))
    return found


def test_the_pages_are_on_the_site_and_the_site_has_no_others() -> None:
    nav = set(documented.leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert nav == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", generate.pages(), ids=lambda path: str(path.relative_to(DOCS)))
def test_what_is_generated_is_what_the_schemas_say_today(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == generate.fill(text), "run `make docs`"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_names_exists(page: str) -> None:
    everything = set().union(*map(documented.opts, documented.commands().values()))
    everything |= {"--install-completion", "--show-completion"}
    assert documented.options(PAGES[page]) - everything <= FOREIGN
    for words in documented.mentioned(PAGES[page]):
        if words[0].startswith("--"):
            assert words[0] in everything, words
            continue
        if words == ["recipes"] or not re.match(r"[a-z]", words[0]):
            continue
        name = documented.command_of(words)
        assert name, words
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= documented.opts(documented.commands()[name]), words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_is_one_that_llmkit_reads(page: str) -> None:
    for one in documented.shown(page, PAGES[page]):
        if one.words[0] == "llmkit":
            name = documented.command_of(one.words[1:])
            context = documented.commands()[name].make_context(name, one.words[1 + len(name.split()) :])
            assert not context.args, one.words


def test_every_command_has_a_table_with_every_option() -> None:
    found = tables()
    assert found.keys() == documented.commands().keys()
    for name, command in documented.commands().items():
        assert found[name] | {"--help"} == documented.opts(command), name


def test_every_recipe_key_is_on_a_page_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \| .* \| .* \| .+ \|$", "\n".join(PAGES.values()), re.MULTILINE)
    assert set(rows) == set(recipe_keys(Recipe))


def test_every_error_code_is_a_heading_of_the_troubleshooting_page() -> None:
    from llmkit import catalogue

    heads = re.findall(r"^### (LK\d{4})$", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert heads == [entry.code for entry in catalogue.all_entries()]


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_records_in_the_text_are_valid(page: str) -> None:
    for block in documented.blocks(PAGES[page], "yaml"):
        raw = yaml.safe_load(block)
        validate(Recipe, {"name": "shown", "model": "demo:gemma-3-270m", **raw}, where=page)
    for block in documented.blocks(PAGES[page], "json"):
        assert all(json.loads(line) for line in block.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.is_file(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}, target


def test_the_site_builds_without_a_network_and_asks_for_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, config = importlib.import_module("mkdocs.commands.build"), importlib.import_module("mkdocs.config")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the site reached for the network"))
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//", text), page
        assert not re.search(r"<link[^>]+(?:stylesheet|preload|icon|preconnect)[^>]+href=[\"']?(?:https?:)?//", text), page
    for page in [*tmp_path.rglob("*.css"), *tmp_path.rglob("*.svg")]:
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", page.read_text("utf-8")), page
    assert not list(tmp_path.rglob("*.py"))


def test_the_metric_of_the_text_is_scored_and_tested_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.metrics import bootstrap, text

    made = example("# metric", {})
    family = {"questions": lambda pairs: made["tallies"](pairs.hypotheses, pairs.references)}
    monkeypatch.setattr(text, "FAMILIES", {**text.FAMILIES, **family})
    found = text.score(["怎么退货？", "好的。"], ["好。", "好。"]).tallies["questions"]
    assert found.score == 50
    low, high = bootstrap.intervals([found])["questions"]
    assert 0 <= low <= 50 <= high <= 100
    assert made["signatures"]().keys() == {"questions"}


def test_the_format_of_the_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.data import formats

    made = example("# format", vars(formats))
    monkeypatch.setattr(formats, "FORMATS", (made["new"], *formats.FORMATS))
    record = formats.read({"q": "你好", "a": "您好"}, "s")
    assert [message["content"] for message in record.messages] == ["你好", "您好"]  # type: ignore[union-attr]
    assert "a must be" in str(formats.read({"q": "你好", "a": 3}, "s"))


def example(title: str, names: dict[str, Any]) -> dict[str, Any]:
    """What the Python block under a title defines, run where `names` are known."""
    [block] = [one for one in documented.blocks(PAGES["docs/extending.md"], "python") if one.startswith(title)]
    scope = dict(names)
    exec(compile(block, title, "exec"), scope)
    return scope


def test_every_command_that_is_shown_runs_in_the_order_of_the_pages(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    furnish(tiny_model)
    assert run(["run", "quickstart"]).exit_code == 0
    failures = [told for page, text in PAGES.items() for one in documented.shown(page, text) if (told := tried(one))]
    assert not failures, "\n\n".join(failures)


def furnish(tiny_model: Path) -> None:
    """The files that the pages speak of; `quickstart`, a file here, goes before the bundled recipe of that name."""
    shutil.copytree(tiny_model, "my-model")
    [recipe] = documented.blocks(PAGES["README.md"], "yaml")
    Path("my-chat.yaml").write_text(recipe, "utf-8")
    animals = ["cat", "dog", "fish", "bird", "horse", "sheep", "猫", "狗", "鱼", "鸟"]
    chats = [
        {"messages": [{"role": "user", "content": f"{name} {n * 977}?"}, {"role": "assistant", "content": f"{n * 31} {name}!"}]}
        for n, name in enumerate(animals * 3)
    ]
    Path("chats.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    for name in ("answers", "expected"):
        write_texts(name, ["今天天气很好。"])
    good = [f"第 {n} 个答案是 {n * 977}。" for n in range(40)]
    for name, texts in (("references", good), ("good", good), ("bad", ["我不知道。"] * 40)):
        write_texts(name, texts)
    [rule] = [one for one in documented.blocks(PAGES["docs/extending.md"], "python") if one.startswith("# judge.py")]
    Path("judge.py").write_text(rule, "utf-8")
    small = yaml.safe_load(recipe) | {
        "name": "quickstart",
        "quantize": [],
        "export": {"types": ["q5_k_m", "q4_k_m"]},
        "eval": {"max_new_tokens": 8},
    }
    Path("quickstart").write_text(json.dumps(small), "utf-8")


def write_texts(name: str, texts: list[str]) -> None:
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    Path(f"{name}.jsonl").write_text("\n".join(lines), "utf-8")


def tried(one: Shown) -> str:
    """What went otherwise than the page says; "" where nothing did."""
    program, *words = one.words
    if program == "cp":
        shutil.copytree(*[word for word in words if not word.startswith("-")])
        return ""
    if program != "llmkit":
        assert shlex.join(one.words) in {"make run", "make test", "source .venv/bin/activate"}, one
        return ""
    if words[0] in ELSEWHERE:
        test = ROOT / ELSEWHERE[words[0]]
        there = test.is_file() and f'"{words[0]}"' in test.read_text("utf-8")
        return "" if there else f"{ELSEWHERE[words[0]]} is to test `{shlex.join(words)}`"
    if words[0] == "serve":
        return served(words)
    result = run(words)
    stand_in = "--max-drop" in words and "quickstart" in shlex.join(words)
    allowed = STAND_IN_GATE if stand_in else {one.exit_code}
    return "" if result.exit_code in allowed else f"{one.page}: llmkit {shlex.join(words)}: {result.exit_code}\n{result.output}"


def served(words: list[str]) -> str:
    """What is wrong with a server that was started, asked whether it is well, and ended; "" where nothing is."""
    command = [sys.executable, "-m", "llmkit", *words, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        killer = threading.Timer(120, process.kill)
        killer.start()
        try:
            ready = json.loads(process.stdout.readline())
            with urllib.request.urlopen(f"{ready['url'].removesuffix('/v1')}/health", timeout=30) as answer:
                state = json.load(answer)
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            killer.cancel()
            process.kill()
    return "" if (state, code) == ({"status": "ok"}, 0) else f"llmkit {shlex.join(words)}: {state}, exit code {code}"


def run(words: list[str]) -> Any:
    return CliRunner().invoke(app, words, input="你好\n", env={"COLUMNS": "120"})
