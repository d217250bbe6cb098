"""The commands as a user types them: what they print, and the code they exit with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmkit.cli import app
from tests.erring import code_of

HEAVY = {"torch", "transformers", "pydantic", "yaml", "numpy", "datasets", "evaluate", "rich"}
CHATS = [
    [
        ("user", f"问题{n}：{'天地玄黄宇宙洪荒'[n % 8]}是什么？"),
        ("assistant", f"答案是{n * 7919}号，{'日月盈昃辰宿列张'[n % 8]}。"),
    ]
    for n in range(40)
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def llmkit(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def write_chats(path: Path, *extra: str) -> None:
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in chat]}, ensure_ascii=False) for chat in CHATS]
    path.write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")


def a_recipe(path: Path, **changes: object) -> None:
    whole = {
        "name": "mine",
        "model": "demo:gemma-3-270m",
        "data": {"sources": [{"path": "chats.jsonl"}]},
        "clean": {"min_turns": 2},
    }
    path.write_text(json.dumps({**whole, **changes}), encoding="utf-8")


def test_help_loads_nothing_heavy() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmkit", "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "Usage: llmkit" in result.stdout
    assert not HEAVY & loaded


def test_every_command_answers_help() -> None:
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        code, out, _ = llmkit(name, "--help")
        assert code == 0
        assert "Usage:" in out


def test_clean_alone_writes_a_dataset_and_says_what_it_dropped(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}')
    arguments = ("clean", "--input", "chats.jsonl", "--output", "out", "--min-turns", "2", "--json")
    code, out, err = llmkit(*arguments)
    assert code == 0, err
    facts = json.loads(out)["facts"]
    assert (facts["read"], facts["kept"], facts["rejected"], facts["quarantined"]) == (41, 40, 1, 0)
    assert sum(len((tmp_path / "out" / f"{side}.jsonl").read_text().splitlines()) for side in ("train", "valid", "test")) == 40
    rejected = json.loads((tmp_path / "out" / "rejected.jsonl").read_text("utf-8"))
    assert rejected["reason"] == "bad_roles" or rejected["reason"] == "too_few_turns"
    assert json.loads(llmkit(*arguments)[1])["fresh"] is True


def test_an_output_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    for extra in ((), ("--force",)):
        code, _, err = llmkit("clean", "--input", "chats.jsonl", "--output", "out", "--min-turns", "2", *extra)
        assert code == 2
        assert "the output is there already" in err
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_a_few_bad_lines_are_named_set_aside_and_counted(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", "{not json")
    arguments = ("clean", "--input", "chats.jsonl", "--output", "out", "--min-turns", "2")
    code, _, err = llmkit(*arguments)
    assert code == 2
    assert "chats.jsonl:41" in err
    code, out, err = llmkit(*arguments, "--set", "clean.max_bad=5%", "--json")
    assert code == 0
    assert "chats.jsonl:41" in err
    assert json.loads(out)["facts"]["quarantined"] == 1


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ({"finetnue": {}}, (), "LK0103 did you mean 'finetune'"),
        ({"clean": {"min_turns": "many"}}, (), "LK0103 clean.min_turns"),
        ({"model": "./missing"}, (), "LK0302 no such model folder"),
        ({"data": {"sources": [{"path": "missing.jsonl"}]}}, (), "LK0113 missing.jsonl"),
        ({"clean": {"min_turns": 9}}, (), "LK0206 empty dataset after cleaning"),
        ({"finetune": {"template": "nonsense"}}, (), "LK0315 nonsense"),
        ({"finetune": {}}, ("--set", "data="), "LK0108 finetune needs `data`"),
        ({}, ("--set", "clean.min_turns"), "LK0104 KEY=VALUE"),
    ],
)
def test_bad_input_is_one_error_on_stderr_and_exit_2(
    tmp_path: Path, change: dict[str, object], arguments: tuple[str, ...], expected: str
) -> None:
    write_chats(tmp_path / "chats.jsonl")
    a_recipe(tmp_path / "r.yaml", **change)
    code, out, err = llmkit("run", "r.yaml", "--quiet", *arguments)
    assert code == 2, err
    assert out == ""
    coded, _, said = expected.partition(" ")
    assert code_of(err) == coded
    assert said in err


def test_under_json_an_error_is_an_object_on_stdout_too(tmp_path: Path) -> None:
    code, out, err = llmkit("validate", "sp\x1b[2Jam", "--json")
    found = json.loads(out)["error"]
    assert (code, found["code"], found["where"]) == (2, code_of(err), "sp\x1b[2Jam")
    assert set(found) == {"code", "what", "where", "next"}
    assert "\x1b" not in out + err
    assert "sp\\x1b[2Jam" in err


def test_under_json_options_that_do_not_go_together_are_an_object_too() -> None:
    code, out, err = llmkit("clean", "--input", "x", "--json")
    assert (code, json.loads(out)["error"]["code"], code_of(err)) == (2, "LK0105", "LK0105")


def test_a_result_that_fails_is_one_object_under_json(tmp_path: Path) -> None:
    """What was found and what is wrong with it: two objects would be no JSON."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 16)
    code, out, err = llmkit("inspect", "m.gguf", "--json")
    found = json.loads(out)
    assert (code, found["error"]["code"], code_of(err)) == (1, "LK0624", "LK0624")
    assert len(found) > 1


def test_an_error_that_no_one_reads_is_no_traceback() -> None:
    script = f"{sys.executable} -m llmkit validate nowhere --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert code_of(done.stderr) == "LK0101"


def test_a_step_without_its_upstream_artifact_says_so(tmp_path: Path) -> None:
    code, _, err = llmkit("quantize", "--input", "nowhere", "--output", "out", "--bits", "4")
    assert code == 2
    assert "no such model folder" in err
    assert llmkit("quantize", "--bits", "4")[0] == 2
    assert "say --recipe" in llmkit("quantize", "--bits", "4")[2]


def test_a_step_remembers_the_last_recipe_and_its_overrides(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    a_recipe(tmp_path / "r.yaml", clean={"min_turns": 9})
    assert llmkit("clean", "--recipe", "r.yaml", "--set", "clean.min_turns=2")[0] == 0
    code, out, err = llmkit("clean")
    assert code == 0
    assert err.splitlines()[0].endswith("r.yaml --set clean.min_turns=2 (the last one run here)")
    assert "0 of 1 steps run" in out


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl")
    a_recipe(tmp_path / "r.yaml")
    assert llmkit("run", "r.yaml")[0] == 0
    assert llmkit("verify", "runs/mine")[0] == 0
    train = tmp_path / "runs" / "mine" / "clean" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"user", b"usor", 1))
    code, _, err = llmkit("verify", "runs/mine")
    assert code == 3
    assert "changed: train.jsonl" in err


def test_eval_scores_texts_alone_without_torch(tmp_path: Path) -> None:
    texts = ["今天天气很好，我们去公园。", "the cat sat on the mat", "混合 mixed 文本 text 一二三"]
    for name in ("p", "r"):
        lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    script = (
        "import sys; from llmkit.cli import app; "
        "app('eval --predictions p.jsonl --references r.jsonl --output out --json'.split(), standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    metrics = found["models"]["predictions"]["metrics"]
    assert {metrics[name] for name in ("bleu", "rouge1", "rouge2", "rougeL", "chrf", "exact_match", "f1")} == {100.0}
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8")) == found


def test_a_mistake_of_ours_is_one_line_and_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.commands import recipes

    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(recipes, "list_recipes", broken)
    code, _, err = llmkit("recipes", "list")
    assert code == 3
    assert code_of(err) == "LK0904"
    assert "llmkit has a bug: ZeroDivisionError: oops" in err
    log = Path(err.rsplit(" ", 1)[1].strip())
    assert "ZeroDivisionError" in log.read_text("utf-8")
    log.unlink()


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.commands import recipes

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "list_recipes", interrupted)
    assert llmkit("recipes", "list")[0] == 130
