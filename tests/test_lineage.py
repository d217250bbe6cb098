"""`llmkit inspect` tells what an artifact was made of, and `llmkit verify` what is no longer as it was."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import artifact
from llmkit.artifact import Artifact, Kind, Manifest
from llmkit.cli import app
from llmkit.report import lineage
from tests.chains import publish_all, write_inputs, write_recipe
from tests.gguf.test_lint import write as write_gguf

RUN = Path("runs/mine")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    publish_all(write_recipe(tmp_path / "r.yaml"), tmp_path / "runs")
    return tmp_path / "runs" / "mine"


def llmkit(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def tree(shown: str) -> list[str]:
    return shown.partition("made of\n")[2].splitlines()


# inspect


def test_the_tree_reaches_from_a_report_to_the_data(run: Path) -> None:
    code, out, _ = llmkit("inspect", str(RUN / "eval"))
    lines = tree(out)
    assert code == 0
    assert any(line.startswith("└─ gguf: gguf by export, ") for line in lines)
    assert sum("model by merge (adapters 1), " in line for line in lines) == 1
    assert sum("model by merge, " in line and line.endswith("(as above)") for line in lines) == 3
    assert any("source.0: chats.jsonl, " in line for line in lines)
    assert any("base: ./model, " in line for line in lines)


def test_json_holds_the_lineage_each_artifact_once(run: Path) -> None:
    told = json.loads(llmkit("inspect", str(RUN / "eval"), "--json")[1])
    nodes = told["lineage"]
    steps = sorted(one["step"] for one in nodes.values() if one["path"])
    assert steps == ["clean", "eval", "export", "finetune", "merge", "quantize", "quantize"]
    assert all(given in nodes for one in nodes.values() for given in one["inputs"].values())
    assert nodes[told["fingerprint"]]["inputs"] == told["inputs"]


def test_an_input_that_is_gone_is_told_by_its_fingerprint(run: Path) -> None:
    merged = json.loads((run / "merge" / "manifest.json").read_text())["fingerprint"]
    shutil.rmtree(run / "merge")
    lines = tree(llmkit("inspect", str(RUN / "quantize-nf4"))[1])
    assert lines == [f"└─ model: not on this disk, {merged[:16]}"]


def test_inputs_are_found_in_another_run_and_in_the_cache(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / ".lock").touch()
    (run / "eval").rename(other / "eval")
    (tmp_path / "cache/llmkit/gguf").mkdir(parents=True)
    (run / "export").rename(tmp_path / "cache/llmkit/gguf/x-0123456789ab")
    lines = tree(llmkit("inspect", "runs/other/eval")[1])
    assert any(line.endswith("runs/mine/merge") for line in lines)
    assert any(line.endswith("cache/llmkit/gguf/x-0123456789ab") for line in lines)


def test_a_model_folder_of_someone_elses_is_told_by_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    config = {"model_type": "gemma3", "dtype": "bfloat16", "text_config": {"hidden_size": 64, "num_hidden_layers": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}, "__metadata__": {}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    code, out, _ = llmkit("inspect", "m", "--json")
    told = json.loads(out)
    assert (code, told["kind"], told["hidden_size"], told["stored_values"]) == (0, "model", 64, {"BF16": 32})
    assert told["chat_template"] is False
    assert "num_hidden_layers: 2" in llmkit("inspect", "m")[1]


def test_an_adapter_of_someone_elses_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "own/er", "r": 8, "peft_type": "LORA"})
    )
    code, out, _ = llmkit("inspect", ".")
    assert code == 0
    assert 'base_model_name_or_path: "own/er"' in out


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}'])
def test_damaged_weights_are_named(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(header)
    code, _, err = llmkit("inspect", ".")
    assert (code, "damaged weights" in err, "bug" in err) == (2, True, False)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=4)


@settings(max_examples=40, deadline=None)
@given(field=st.sampled_from(["files", "inputs", "facts", "config", "fingerprint", "step"]), value=JSON)
def test_a_manifest_that_holds_anything_is_read_or_refused(
    field: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    whole = {"kind": "model", "step": "merge", "fingerprint": "f", "config": {}, "inputs": {}, "schema": 1, "files": {}}
    (folder / "manifest.json").write_text(json.dumps({**whole, field: value}))
    for command in ("inspect", "verify"):
        code, _, err = llmkit(command, str(folder))
        assert code in (0, 2, 3)
        assert "bug" not in err


def test_a_manifest_of_endless_brackets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    code, _, err = llmkit("inspect", ".")
    assert (code, "LK0114" in err) == (2, True)


def test_what_a_manifest_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    bad = "\x1b[2J\x9b"
    staging = tmp_path / "staging"
    staging.mkdir()
    manifest = Manifest(Kind.MODEL, bad, f"{bad}f", {"origin": bad}, {bad: bad}, facts={bad: bad})
    artifact.publish(staging, tmp_path / "a", manifest)
    for command in ("inspect", "verify"):
        _, out, _ = llmkit(command, "a")
        assert "\x1b" not in out
        assert "\x9b" not in out


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.dictionaries(st.sampled_from(["x", "y", "z"]), names, max_size=3), max_size=6), names)
def test_any_graph_even_one_that_bites_its_tail_makes_a_finite_tree(graph: dict[str, dict[str, str]], root: str) -> None:
    known = {
        name: Artifact(Path(name), Manifest(Kind.MODEL, "merge", name, {}, inputs))
        for name, inputs in {root: {}, **graph}.items()
    }
    traced = lineage.trace(known[root], known, {})
    lines = lineage.render(root, traced)
    reached, waiting = set[str](), [root]
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += known[name].manifest.inputs.values() if name in known else []
    assert set(traced) == reached
    assert len(lines) == sum(len(known[name].manifest.inputs) for name in reached if name in known)


# verify


def test_a_workspace_is_verified_as_a_tree(run: Path) -> None:
    code, out, _ = llmkit("verify", "runs")
    assert code == 0
    assert out.splitlines()[:3] == ["runs", "├─ mine", "│  ├─ clean: dataset, 1 file, ok"]
    assert out.splitlines()[-1] == "7 artifacts, 7 files: all as recorded"


@pytest.mark.parametrize("place", ["runs", "runs/mine", "runs/mine/merge"])
def test_each_problem_stands_under_its_artifact_and_the_exit_code_is_3(place: str, run: Path) -> None:
    (run / "merge" / "weights").write_text("other")
    (run / "merge" / "more").write_text("x")
    code, out, err = llmkit("verify", place)
    lines = [line.lstrip("│├└─ ") for line in out.splitlines()]
    told = next(index for index, line in enumerate(lines) if "model, 1 file, 2 problems" in line)
    assert code == 3
    assert lines[told + 1 : told + 3] == ["not in the manifest: more", "changed: weights"]
    assert "LK0114" in err
    assert json.loads(llmkit("verify", place, "--json")[1])["problems"] == 2


def test_a_torn_manifest_is_a_problem_and_work_under_way_is_none(run: Path) -> None:
    (run / ".staging" / "merge-0123456789abcdef").mkdir(parents=True)
    (run / ".staging" / "merge-0123456789abcdef" / "manifest.json").write_text("{")
    assert llmkit("verify", "runs")[0] == 0
    (run / "merge" / "manifest.json").write_text("{")
    code, out, _ = llmkit("verify", "runs")
    assert (code, "damaged: manifest.json" in out) == (3, True)


def test_nothing_to_verify_is_exit_2(tmp_path: Path) -> None:
    for place in (".", "nowhere", "nowhere.gguf"):
        assert llmkit("verify", place)[0] == 2


def test_a_gguf_file_is_held_against_the_manifest_beside_it(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    write_gguf(staging / "model.gguf", {})
    write_gguf(staging / "other.gguf", {})
    artifact.publish(staging, tmp_path / "export", Manifest(Kind.GGUF, "export", "f" * 64, {}, {}))
    file = tmp_path / "export" / "model.gguf"
    assert llmkit("verify", str(file))[0] == 0
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    code, out, _ = llmkit("verify", str(file))
    assert (code, "changed: model.gguf" in out) == (3, True)
    assert llmkit("verify", str(tmp_path / "export" / "other.gguf"))[0] == 0


def test_a_gguf_file_alone_says_which_model_it_was_made_of_if_it_knows(tmp_path: Path) -> None:
    write_gguf(tmp_path / "ours.gguf", {"llmkit.fingerprint": "abc123" * 10})
    code, out, _ = llmkit("verify", "ours.gguf")
    assert (code, "of the model abc123" in out) == (0, True)
    write_gguf(tmp_path / "theirs.gguf", {})
    assert llmkit("verify", "theirs.gguf")[0] == 2
