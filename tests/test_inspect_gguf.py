"""`llmkit inspect` of a GGUF file, or of the artifact that holds some."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit import artifact
from llmkit.artifact import Kind, Manifest
from llmkit.cli import app
from tests.erring import code_of
from tests.gguf.test_lint import TEMPLATE, write

DAMAGE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def inspect(path: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", str(path), *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_whole_file_shows_what_it_holds_and_exits_with_0(tmp_path: Path) -> None:
    code, out, err = inspect(write(tmp_path / "m.gguf", {}))
    assert (code, err) == (0, "")
    assert "llama; 512 parameters in 1 tensors; 32.00 bits a weight; file type q8_0" in out
    assert "F32      1 tensors" in out
    assert "llama.context_length: 64" in out
    assert "nothing found amiss" in out


def test_an_error_is_printed_and_exits_with_1(tmp_path: Path) -> None:
    code, out, err = inspect(write(tmp_path / "m.gguf", {TEMPLATE: None}))
    assert code == 1
    assert "error: the file has no chat template [chat-template]" in out
    assert code_of(err) == "LK0624"
    assert "1 error found" in err


def test_warnings_and_notes_alone_exit_with_0(tmp_path: Path) -> None:
    code, out, _ = inspect(write(tmp_path / "m.gguf", {"general.file_type": 15}))
    assert (code, "warning: 1 of 1 matrices" in out) == (0, True)


def test_json_is_one_object_and_keeps_the_exit_code(tmp_path: Path) -> None:
    code, out, _ = inspect(write(tmp_path / "m.gguf", {TEMPLATE: None, "general.x": float("inf")}), "--json")
    told = json.loads(out)
    assert code == 1
    assert [one["check"] for one in told["findings"]] == ["chat-template"]
    assert told["metadata"]["general.x"] == "inf"
    assert told["types"]["F32"]["tensors"] == 1


def test_an_artifact_shows_its_facts_and_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    staging = tmp_path / "staging"
    staging.mkdir()
    write(staging / "model-f32.gguf", {})
    write(staging / "model-q8_0.gguf", {TEMPLATE: None})
    artifact.publish(staging, folder, Manifest(Kind.GGUF, "export", "f" * 64, {}, {}, facts={"types": 2}))
    code, out, _ = inspect(folder)
    assert code == 1
    assert out.index("gguf made by export") < out.index("model-f32.gguf") < out.index("model-q8_0.gguf")
    _, out, _ = inspect(folder, "--json")
    told = json.loads(out)
    assert told["step"] == "export"
    assert [len(one["findings"]) for one in told["gguf"]] == [0, 1]


@pytest.mark.parametrize(("retention", "lost"), [(0.6, True), (0.95, False)])
def test_a_file_beside_its_manifest_shows_what_it_kept_of_the_fine_tune(retention: float, lost: bool, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    write(tmp_path / "staging/model-f32.gguf", {})
    types = {"odd": 3, "f32": {"files": ["model-f32.gguf"], "retention": retention, "kl": 0.5}}
    artifact.publish(
        tmp_path / "staging", tmp_path / "export", Manifest(Kind.GGUF, "export", "f" * 64, {}, {}, facts={"types": types})
    )
    code, out, _ = inspect(tmp_path / "export/model-f32.gguf")
    assert (code, f"retention {retention:.3f}" in out, "lost the fine-tune" in out) == (0, True, lost)


def test_a_files_words_cannot_move_the_cursor(tmp_path: Path) -> None:
    hostile = "\x1b[2J\u202e\n\rfree"
    _, out, _ = inspect(
        write(tmp_path / "m.gguf", {"general.name": hostile, TEMPLATE: f"{{{{ raise_exception('{hostile}') }}}}"})
    )
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\r" not in out
    assert "\\u001b[2J" in out


@pytest.mark.parametrize(("name", "expected"), [("nowhere.gguf", "LK0113"), ("nowhere", "LK0112")])
def test_what_is_not_there_is_named(name: str, expected: str, tmp_path: Path) -> None:
    code, _, err = inspect(tmp_path / name)
    assert (code, code_of(err)) == (2, expected)


@given(cut=st.floats(0, 1, exclude_max=True), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
@DAMAGE
def test_a_damaged_file_is_one_error_or_a_finding(
    cut: float, flips: list[tuple[float, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.gguf import lint

    monkeypatch.setattr(lint, "render", lambda template, conversations, tokens: [lint.Rendering(error="not now")] * 3)
    raw = bytearray(write(tmp_path / "whole.gguf", {}).read_bytes())
    for place, value in flips:
        raw[min(int(place * len(raw)), len(raw) - 1)] = value
    path = tmp_path / "m.gguf"
    path.write_bytes(raw[: int(cut * len(raw))] if not flips else raw)
    code, out, err = inspect(path)
    assert code in (1, 2) if not flips else code in (0, 1, 2)
    assert code != 2 or (not out and code_of(err) == "LK0601")
    assert "bug" not in err
