"""A name becomes the artifact that it means, or a refusal that says what to name instead."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmkit import artifact, origin
from llmkit.artifact import Kind, Manifest
from llmkit.errors import DataError, LlmkitError, MachineError, UsageError
from llmkit.serve import opening
from llmkit.serve.found import Found
from llmkit.serve.speaker import Speaker, Wish

CHAT = [{"role": "user", "content": "你好！"}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def publish(
    folder: Path,
    kind: Kind,
    files: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Path:
    """An artifact whose fingerprint is its folder's name; files are text, JSON, or a path to copy."""
    staging = folder.with_name(folder.name + ".staging")
    staging.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copy(content, staging / name)
        else:
            (staging / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    artifact.publish(staging, folder, Manifest(kind, "test", folder.name, {}, inputs or {}, facts=facts or {}))
    return folder


def exported(run: Path, retention: Mapping[str, float | None], *, lora: bool = False) -> Path:
    """An export of files that grow with their order in `retention`."""
    types = {
        kind: {"files": [f"model-{kind}.gguf"], "bytes": size, "retention": kept}
        for size, (kind, kept) in enumerate(retention.items(), 10)
    }
    files = {f"model-{kind}.gguf": kind for kind in retention}
    facts: dict[str, Any] = {"types": types}
    if lora:
        facts["adapter"] = {"file": "adapter.gguf", "base": {"type": "q4_k_m", "files": ["base-q4_k_m.gguf"]}}
        files |= {"adapter.gguf": "lora", "base-q4_k_m.gguf": "base"}
    return publish(run / "export", Kind.GGUF, files, facts=facts, inputs={"model": "merge"})


def report(run: Path, best: str, **inputs: str) -> None:
    """An evaluation whose advice is `best`."""
    rows = {
        name: {"metrics": {"rougeL": 20.0}, "size_bytes": size, "retention": 0.99, "kl": 0.1}
        for name, size in (("merged", 900), ("int8", 800), ("q8_0", 700), (best, 100))
    }
    publish(run / "eval", Kind.REPORT, {"report.json": {"reference": "merged", "models": rows, "n_samples": 9}}, inputs=inputs)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    found = tmp_path / "runs" / "mine"
    publish(found / "merge", Kind.MODEL, {"config.json": {}})
    publish(found / "quantize-int8", Kind.QUANTIZED, {"config.json": {"quantization_config": {}}})
    (found / ".lock").touch()
    return found


def test_a_run_speaks_as_its_evaluation_advises(run: Path) -> None:
    exported(run, {"q4_0": 0.99, "q8_0": 0.99}, lora=True)
    report(run, "q4_k_m+lora", merged="merge", gguf="export")
    found = opening.find(str(run))
    assert (found.name, found.kind, found.path.name) == ("mine/q4_k_m+lora", "gguf", "base-q4_k_m.gguf")
    assert found.lora == run / "export" / "adapter.gguf"
    assert opening.latest(run.parent) == found


@pytest.mark.parametrize(("role", "row", "part"), [("int8", "int8", "quantize-int8"), ("merged", "merged", "merge")])
def test_the_advice_may_be_a_folder(role: str, row: str, part: str, run: Path) -> None:
    report(run, row, **{role: part})
    found = opening.find(str(run))
    assert (found.name, found.path) == (f"mine/{row}", run / part)
    assert found.kind == ("quantized" if role == "int8" else "model")


def test_an_evaluation_of_other_files_counts_for_nothing(run: Path) -> None:
    exported(run, {"q4_0": 0.99, "q8_0": 0.99}, lora=True)
    report(run, "q4_k_m+lora", merged="merge", gguf="an older export")
    assert opening.find(str(run)).name == "mine/q4_0"


@pytest.mark.parametrize(
    ("retention", "lora", "best"),
    [
        ({"q2_k": 0.4, "q4_0": 0.9, "q8_0": 0.99}, False, "q4_0"),
        ({"q2_k": 0.4, "q4_0": 0.6}, True, "q4_k_m+lora"),
        ({"q2_k": 0.4, "q4_0": 0.6}, False, "q4_0"),
        ({"q4_0": None, "q8_0": None}, False, "q4_0"),
    ],
)
def test_of_an_export_the_smallest_speaks_that_kept_the_fine_tune(
    retention: dict[str, float | None], lora: bool, best: str, run: Path
) -> None:
    folder = exported(run, retention, lora=lora)
    assert opening.find(str(folder)).name == opening.find(str(run)).name == f"mine/{best}"


def test_without_export_the_merged_model_speaks_and_without_that_the_adapter(run: Path, tiny_model: Path) -> None:
    assert opening.find(str(run)).name == "mine/merged"
    for part in ("merge", "quantize-int8"):
        shutil.rmtree(run / part)
    publish(run / "finetune", Kind.ADAPTER, {"adapter_config.json": {"base_model_name_or_path": str(tiny_model)}})
    assert opening.find(str(run)) == Found("mine/finetune", "adapter", run / "finetune", base=tiny_model)


def test_latest_follows_what_was_run_last(run: Path) -> None:
    publish(run.parent / "other" / "merge", Kind.MODEL, {"config.json": {}})
    (run.parent / "empty").mkdir()
    assert opening.latest(run.parent).name == "other/merged"  # the newest
    artifact.write_json(run.parent / "last.json", {"recipe": "/somewhere/mine.yaml", "set": []})
    assert opening.latest(run.parent).name == "mine/merged"
    assert opening.find(str(run.parent)).name == "mine/merged"
    for damaged in ("{", "[]", '{"recipe": null}'):
        (run.parent / "last.json").write_text(damaged, "utf-8")
        assert opening.latest(run.parent).name == "other/merged"


def test_an_adapter_needs_the_very_base_that_it_was_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    trained_on = origin.model(str(base)).fingerprint
    config = {"base_model_name_or_path": str(base)}
    folder = publish(tmp_path / "tuned", Kind.ADAPTER, {"adapter_config.json": config}, inputs={"base": trained_on})
    assert opening.find(str(folder)).base == base
    (base / "extra.txt").write_text("changed")
    with pytest.raises(UsageError, match="not on this disk") as caught:
        opening.find(str(folder))
    assert "--base" in caught.value.next
    assert opening.find(str(folder), base=str(base)).base == base  # said so, so taken
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/model"}', "utf-8")
    with pytest.raises(UsageError, match="stranger/model"):  # and nothing is fetched for a stranger's file
        opening.find(str(folder))


def test_files_and_folders_of_gguf(tmp_path: Path, tiny_gguf: Callable[[str], Path]) -> None:
    assert opening.find(str(tiny_gguf("f32"))) == Found("tiny-f32", "gguf", tiny_gguf("f32"))
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(tiny_gguf("f32"), folder / "m-00001-of-00002.gguf")
    shutil.copy(tiny_gguf("f32"), folder / "m-00002-of-00002.gguf")
    assert opening.find(str(folder)).path.name == "m-00001-of-00002.gguf"
    shutil.copy(tiny_gguf("f32"), folder / "other.gguf")
    with pytest.raises(UsageError, match="2 GGUF models"):
        opening.find(str(folder))


@pytest.mark.parametrize("kind", [Kind.DATASET, Kind.REPORT, Kind.SOURCE])
def test_what_is_no_model_is_refused_by_name(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to say") as caught:
        opening.find(str(publish(tmp_path / "it", kind, {"a.txt": "a"})))
    assert (caught.value.code, caught.value.where) == ("LK0802", str(tmp_path / "it"))


@pytest.mark.parametrize(
    "reference", ["", "\0", "~nobody-at-all/x", "./nope", "nope", "nope.gguf", "demo:nope", "a" * 5000, "x/y"]
)
def test_any_other_name_is_a_refusal_that_says_what_to_name(reference: str) -> None:
    with pytest.raises(LlmkitError) as caught:
        opening.find(reference)
    assert caught.value.next
    assert caught.value.code


def test_broken_files_are_data_errors(tmp_path: Path, run: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(DataError):
        opening.find(str(tmp_path / "broken.gguf"))
    (run / "merge" / "config.json").write_text("[" * 100_000, "utf-8")
    with pytest.raises(DataError):
        opening.find(str(run / "merge"))
    with pytest.raises(UsageError, match="no recipe was run"):
        opening.latest(tmp_path / "nowhere")


def test_a_base_or_a_backend_that_does_not_fit_is_refused(run: Path, tiny_gguf: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="needs no base"):
        opening.find(str(run / "merge"), base="demo:smollm2-135m")
    gguf = opening.find(str(tiny_gguf("f32")))
    for backend in ("vllm", "transformers"):
        with pytest.raises(UsageError, match="runs GGUF files"), opening.open_speaker(gguf, backend=backend):
            pass
    folder = opening.find(str(run / "merge"))
    with pytest.raises(UsageError, match="no backend"), opening.open_speaker(folder, backend="tpu"):
        pass
    with pytest.raises(MachineError, match="not installed"), opening.open_speaker(folder, backend="vllm"):
        pass


def test_both_runtimes_open_and_say_the_same(tiny_chat: Path, tiny_gguf: Callable[[str], Path]) -> None:
    def ask(speaker: Speaker) -> tuple[str, str]:
        pieces = list(speaker.speak(speaker.render(CHAT), Wish(max_tokens=12, temperature=0.0)))
        return "".join(piece.text for piece in pieces), pieces[-1].finish

    said = []
    for reference in (tiny_chat, tiny_gguf("f32")):
        with opening.open_speaker(opening.find(str(reference)), parallel=2, threads=1) as speaker:
            assert (speaker.parallel, speaker.context) == (2, 512)
            said.append((ask(speaker), speaker.count(speaker.render(CHAT))))
    assert said[0] == said[1]
