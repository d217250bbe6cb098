"""The bundled recipes: each says what it is, validates, plans without a network, and runs on a tiny model of its family."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from llmkit import artifact, pipeline, recipe
from llmkit.cli import app
from llmkit.commands import planning, running
from llmkit.commands import recipes as commands
from llmkit.errors import DataError, GateError, LlmkitError, RecipeError, UsageError
from tests.recipe_data import FAMILY, lay, tiny

NAMES = sorted(recipe.bundled())
TEXTS = {name: path.read_text("utf-8") for name, path in recipe.bundled().items()}
HUB = [name for name in NAMES if not recipe.load(recipe.bundled()[name]).model.startswith("demo:")]
# Sizes alone: what takes minutes on a processor. All else is as shipped.
SMALL = ("finetune.max_steps=2", "finetune.max_length=256", "eval.max_samples=2", "eval.max_new_tokens=4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with a cache of its own and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path


def test_every_recipe_has_a_family_to_be_tried_on() -> None:
    assert set(FAMILY) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_what_it_is_for_and_the_command_that_runs_it(name: str) -> None:
    first, second, *_ = TEXTS[name].splitlines()
    assert re.fullmatch(r"# .{20,126}[.]", first)
    found = re.fullmatch(r"#   llmkit (run .*)", second)
    assert found
    command: Any = typer.main.get_command(app)
    verb, shown, *options = shlex.split(found[1])
    parsed = command.commands[verb].make_context("llmkit", [shown, *options])
    assert parsed.params["recipe"] == name == recipe.load(recipe.find(name), parsed.params["set_"] or ()).name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_s_comments_fit_and_no_setting_stands_in_the_header(name: str) -> None:
    assert max(map(len, TEXTS[name].splitlines())) <= 130
    for setting in re.findall(r"--set (?:'([^']+)'|(\S+))", TEXTS[name]):
        recipe.load(recipe.bundled()[name], [next(filter(None, setting)).rstrip(".,;`")])


@pytest.mark.parametrize("name", HUB)
def test_a_recipe_is_planned_with_its_hub_id_and_no_network(name: str, here: Path) -> None:
    lay(name, here)
    chosen = recipe.load(recipe.find(name))
    steps = [one.node.name for one in pipeline.plan(pipeline.lay_out(chosen), here / "runs")]
    assert commands.validate(name).data == {"recipe": name, "steps": steps}
    assert [one["name"] for one in planning.plan(name, [], here / "runs").data["steps"]] == steps
    assert steps[-1] == ("eval" if chosen.eval else "export")


def test_the_published_settings_are_those_of_the_cards() -> None:
    """shenzhi-wang/Llama3-8B-Chinese-Chat: the cards of v1 and v2, and the commands they print."""
    both = {"objective": "orpo", "method": "full", "beta": 0.05, "schedule": "cosine", "warmup": 0.1, "max_length": 8192}
    v1 = {"lr": 5e-6, "epochs": 3, "batch_size": 64, "micro_batch": 2}
    v2 = {"lr": 3e-6, "epochs": 2, "batch_size": 128, "micro_batch": 1}
    for name, own in {"llama3-8b-chinese-v1": v1, "llama3-8b-chinese-v2": v2}.items():
        found = recipe.load(recipe.find(name))
        assert found.finetune
        assert found.model == "meta-llama/Meta-Llama-3-8B-Instruct"
        assert found.seed == 42
        assert found.finetune.model_dump().items() >= {**both, **own}.items()


def test_domain_recipes_train_q_and_v_as_published() -> None:
    for name in ("llama2-7b-domain", "llama2-13b-domain"):
        found = recipe.load(recipe.find(name)).finetune
        assert found
        lora = {"rank": 16, "alpha": 32, "dropout": 0.1, "targets": ("q_proj", "v_proj")}
        assert found.lora.model_dump().items() >= lora.items()


def test_the_list_tells_each_recipe_in_a_line() -> None:
    told = CliRunner().invoke(app, ["recipes", "list"])
    assert [line.split()[0] for line in told.stdout.splitlines()] == NAMES
    assert list(json.loads(CliRunner().invoke(app, ["recipes", "list", "--json"]).stdout)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_recipe_itself_and_a_second_one_is_refused(name: str, here: Path) -> None:
    assert commands.copy_recipe(name, Path("llmkit.yaml"), force=False).text.endswith("next: llmkit plan")
    assert (here / "llmkit.yaml").read_text("utf-8") == TEXTS[name]
    (here / "llmkit.yaml").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="there already"):
        commands.copy_recipe(name, Path("llmkit.yaml"), force=False)
    assert (here / "llmkit.yaml").read_text("utf-8") == "mine"
    commands.copy_recipe(name, Path("llmkit.yaml"), force=True)
    assert recipe.load(here / "llmkit.yaml").name == name


def test_a_copy_is_never_put_where_it_cannot_be(here: Path) -> None:
    (here / "folder").mkdir()
    (here / "file").write_text("")
    for place, force in (("folder", True), ("file/inside.yaml", False), (str(recipe.bundled()["quickstart"]), True)):
        with pytest.raises(LlmkitError) as caught:
            commands.copy_recipe("quickstart", Path(place), force=force)
        assert caught.value.next
    assert recipe.load(recipe.find("quickstart"))


def test_validate_tells_everything_that_is_missing_with_its_line(here: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        commands.validate("customer-service")
    lines = TEXTS["customer-service"].splitlines()
    problems = caught.value.what.split("; ")
    assert len(problems) == 5
    for problem in problems:
        found = re.match(r"([\w.]+) \(line (\d+)\)", problem)
        assert found
        assert found[1].split(".")[1] in lines[int(found[2]) - 1]


def test_validate_tells_every_problem_of_a_recipe_at_once(here: Path) -> None:
    (here / "r.yaml").write_text("name: r\nmodel: ./no\nfinetune: {lora: {rnak: 1}, epochs: none}\nexport: {types: q9}\n")
    with pytest.raises(RecipeError, match=r"rnak.*epochs.*types"):
        commands.validate("r.yaml")
    (here / "r.yaml").write_text(
        "name: r\nmodel: ./no\ndata: {sources: [{path: a.jsonl}, {path: b.jsonl}]}\nfinetune: {template: t.jinja, "
        "init_adapter: old}\nmerge: {adapters: [{path: other}]}\nexport: {imatrix: text.txt}\n"
        "eval: {sensitive: [w.txt], gate: {baseline: ./old}, code: {problems: p.jsonl}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        commands.validate("r.yaml")
    named = ["./no", "a.jsonl", "b.jsonl", "t.jinja", "old", "other", "text.txt", "w.txt", "p.jsonl", "./old"]
    assert all(one in caught.value.what for one in named)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_end_to_end_on_a_tiny_model_of_its_family(name: str, here: Path) -> None:
    """Two steps of training, and all that follows; only base, data and sizes are not the recipe's own."""
    lay(name, here)
    chosen = recipe.load(recipe.find(name))
    small = [one for one in SMALL if getattr(chosen, one.split(".")[0])]
    small += ["data.sources=[{path: data/records.jsonl}]"] if chosen.data and chosen.model.startswith("demo:") else []
    if chosen.data:
        # Of forty records, every side needs some.
        small += ["data.split.train=0.6", "data.split.valid=0.2", "data.split.test=0.2"]
    if chosen.eval and chosen.eval.code:
        small += ["eval.code.limit=1", "eval.code.samples=1", "eval.code.k=[1]", "eval.code.max_new_tokens=8"]
    if chosen.export and chosen.export.types == "auto":
        # Two steps at the recipe's rate teach nothing that a file could keep.
        small += ["finetune.lr=0.05"]
    given = [f"model={tiny(name, here / 'tiny')}", *small]
    done = running.run(name, given, here / "runs", force=False, allow=pipeline.Allowed(code_exec=True))
    # Two dialogues cannot tell whether a gate holds: that is exit code 2.
    assert done.failure is None or (chosen.eval and chosen.eval.gate and isinstance(done.failure, GateError | DataError))
    assert [step["name"] for step in done.data["steps"]] == [node.name for node in pipeline.lay_out(chosen).nodes]
    for step in done.data["steps"]:
        made = artifact.load(Path(step["path"]))
        assert made
        assert not artifact.verify(made)
    if chosen.eval and chosen.eval.gate:
        assert done.data["report"]["gate"]["checks"]


def offered(line: str) -> list[str]:
    """What bash is offered at the end of `line`."""
    asked = {"_LLMKIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    return CliRunner().invoke(app, [], env=asked, prog_name="llmkit", catch_exceptions=False).stdout.split()


def test_the_shell_completes_recipes_keys_topics_and_artifacts(here: Path) -> None:
    (here / "chat.yaml").touch()
    made = here / "runs" / "mine" / "merge"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    assert offered("llmkit run chi") == ["chinese-chat"]
    assert offered("llmkit run ch") == ["chinese-chat", "chat.yaml"]
    assert offered("llmkit finetune --recipe qui") == ["quickstart"]
    assert offered("llmkit run quickstart --set finetune.lora.ra") == ["finetune.lora.rank="]
    assert offered("llmkit explain finetune.lora.ra") == ["finetune.lora.rank"]
    assert offered("llmkit verify runs/mine/") == ["runs/mine/merge"]
    assert offered("llmkit verify nowhere/") == []
