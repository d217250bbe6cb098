"""The whole chain, run as a user runs it: on a tiny model in seconds, on the real one in minutes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit import artifact
from llmkit.data.quality import is_refusal
from llmkit.metrics.text import score

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}


def llmkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmkit", *arguments], cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def ran(*arguments: str, cwd: Path) -> Any:
    result = llmkit(*arguments, "--json", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def names_run(found: Any) -> list[str]:
    return [step["name"] for step in found["steps"] if step["seconds"]]


def write_tiny_recipe(folder: Path, model: Path, **finetune: object) -> Path:
    """A recipe of every step on the tiny model, and 60 dialogues for it."""
    subjects = ["猫", "狗", "鱼", "鸟", "马", "羊", "cat", "dog", "fish", "bird", "horse", "sheep"]
    colours = ["红", "绿", "蓝", "黄", "白"]
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{a} {n * 977} 是什么颜色？"},
                {"role": "assistant", "content": f"{b}{n * 31}。"},
            ]
        }
        for n, (a, b) in enumerate((a, b) for a in subjects for b in colours)
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "chats.jsonl").write_text(text, encoding="utf-8")
    whole = {
        "name": "tiny",
        "model": str(model),
        "data": {
            "sources": [{"path": "chats.jsonl"}],
            "split": {"train": 0.7, "valid": 0.1, "test": 0.2, "near": 1.0},
            "pairs": {"rejected": "shuffle"},
        },
        "clean": {"min_turns": 2},
        "finetune": {"template": "chatml", "lr": 1e-2, "max_steps": 12, "checkpoint_every": 2, **finetune},
        "quantize": [{"bits": 8}, {"bits": 4}],
        "export": {"types": ["f16", "q8_0", "q4_0", "q5_k_m", "q4_k_m"]},
        "eval": {"max_new_tokens": 8, "max_samples": 4},
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def test_every_step_runs_on_a_tiny_model_and_a_second_run_runs_nothing(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_recipe(tmp_path, tiny_model)
    found = ran("run", "tiny.yaml", cwd=tmp_path)
    assert names_run(found) == ["clean", "finetune", "merge", "quantize-int8", "quantize-nf4", "export", "eval"]
    report = found["report"]
    assert list(report["models"]) == ["base", "merged", "int8", "nf4", "f16", "q8_0", "q5_k_m", "q4_k_m", "q4_0"]
    for name, model in report["models"].items():
        assert set(model["metrics"]) >= {"bleu", "rouge1", "rouge2", "rougeL", "chrf", "exact_match", "f1", "refusals"}, name
        assert model["perplexity"] > 1
        assert model["size_bytes"] > 0
        assert model["tokens_per_second"] > 0
        assert model["peak_memory_bytes"] > 0
        assert model["n_samples"] == 4
    assert report["models"]["f16"]["retention"] == pytest.approx(1, abs=0.01)
    assert names_run(ran("run", "tiny.yaml", cwd=tmp_path)) == []
    assert llmkit("verify", "runs/tiny", cwd=tmp_path).returncode == 0


def test_a_preference_run_makes_its_pairs_first(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_recipe(tmp_path, tiny_model, objective="orpo")
    found = ran("run", "tiny.yaml", "--set", "quantize=[]", "--set", "export.types=[q8_0]", cwd=tmp_path)
    assert names_run(found) == ["clean", "pairs", "finetune", "merge", "export", "eval"]
    assert list(found["report"]["models"]) == ["base", "merged", "q8_0"]


def test_the_report_s_scores_are_those_of_its_samples(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_recipe(tmp_path, tiny_model)
    report = ran("run", "tiny.yaml", "--set", "export=", "--set", "quantize=[]", cwd=tmp_path)["report"]
    samples = [json.loads(line) for line in (tmp_path / "runs/tiny/eval/samples.jsonl").read_text("utf-8").splitlines()]
    references = [sample["reference"] for sample in samples]
    for name, model in report["models"].items():
        answers = [sample["answers"][name] for sample in samples]
        assert model["metrics"] == score(answers, references, is_refusal=is_refusal).metrics


def test_a_run_killed_in_finetune_goes_on_and_gives_the_same_adapter(tiny_model: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        write_tiny_recipe(folder, tiny_model, max_steps=200)
    ran("finetune", "--recipe", "tiny.yaml", cwd=whole)
    command = [sys.executable, "-m", "llmkit", "finetune", "--recipe", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=killed, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("runs/tiny/.staging/finetune-*/checkpoints/checkpoint-*/complete*")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert artifact.load(killed / "runs/tiny/finetune") is None
    result = llmkit("run", "tiny.yaml", "--set", "export=", "--set", "eval=", "--set", "quantize=[]", cwd=killed)
    assert result.returncode == 0, result.stderr
    assert "resum" in result.stderr or "goes on" in result.stderr, result.stderr
    name = "runs/tiny/finetune/adapter_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_ctrl_c_ends_with_130_and_keeps_what_was_finished(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_recipe(tmp_path, tiny_model, max_steps=5000, checkpoint_every=5000)
    command = [sys.executable, "-m", "llmkit", "run", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/tiny/.staging/finetune-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    clean = artifact.load(tmp_path / "runs/tiny/clean")
    assert clean is not None
    assert artifact.verify(clean) == []


def test_each_step_works_alone_on_what_no_recipe_made(tiny_model: Path, tmp_path: Path) -> None:
    write_tiny_recipe(tmp_path, tiny_model)
    base = str(tiny_model)
    ran("clean", "--input", "chats.jsonl", "--output", "data", "--min-turns", "2", cwd=tmp_path)
    train = ("--set", "finetune.template=chatml", "--set", "finetune.max_steps=2")
    ran("finetune", "--input", "data", "--model", base, "--output", "adapter", *train, cwd=tmp_path)
    ran("merge", "--input", "adapter", "--model", base, "--output", "merged", cwd=tmp_path)
    ran("quantize", "--input", "merged", "--bits", "8", "--output", "int8", cwd=tmp_path)
    ran("export", "--input", "merged", "--type", "q8_0", "--output", "gguf", cwd=tmp_path)
    limits = ("--set", "eval.max_samples=2", "--set", "eval.max_new_tokens=4")
    found = ran("eval", "--input", "merged", "--data", "data", "--output", "report", *limits, cwd=tmp_path)
    assert found["report"]["models"]["merged"]["n_samples"] == 2
    assert (tmp_path / "gguf" / "model-q8_0.gguf").is_file()
    refused = llmkit("quantize", "--input", "int8", "--bits", "4", "--output", "again", cwd=tmp_path)
    assert refused.returncode == 2
    assert "quantized" in refused.stderr


def test_a_merge_into_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    write_tiny_recipe(tmp_path, tiny_model, max_steps=2)
    ran("finetune", "--recipe", "tiny.yaml", cwd=tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "README").write_text("changed")
    result = llmkit("merge", "--input", "runs/tiny/finetune", "--model", str(other), "--output", "m", cwd=tmp_path)
    assert result.returncode == 2
    assert "trained on another base" in result.stderr


def test_a_gguf_file_is_a_base_that_is_tuned_and_shipped_as_gguf_again(tiny_model: Path, tmp_path: Path) -> None:
    from llmkit.gguf.convert import export

    export(tiny_model, tmp_path / "base.gguf", type="q8_0", template="", name="tiny")
    write_tiny_recipe(tmp_path, Path("base.gguf"))
    options = ("--set", "quantize=[]", "--set", "export={types: [q4_k_m], adapter: q8_0}")
    models = ran("run", "tiny.yaml", *options, cwd=tmp_path)["report"]["models"]
    assert list(models) == ["base", "merged", "q8_0+lora", "q4_k_m"]
    assert models["q8_0+lora"]["retention"] > 0.99
    again = llmkit("plan", "tiny.yaml", *options, cwd=tmp_path)
    assert "not built" not in again.stdout


@pytest.mark.slow
def test_the_quickstart_s_chain_runs_on_the_real_model(tmp_path: Path) -> None:
    small = ("--set", "finetune.max_steps=30", "--set", "eval.max_samples=24", "--set", "eval.max_new_tokens=24")
    report = ran("run", "quickstart", *small, cwd=tmp_path)["report"]
    models = report["models"]
    assert list(models) == ["base", "merged", "int8", "nf4", "q8_0", "q4_k_m+lora", "q5_k_m", "q4_k_m"]
    assert models["merged"]["metrics"]["rougeL"] > models["base"]["metrics"]["rougeL"] + 3
    assert models["q8_0"]["retention"] > 0.95
    assert models["q4_k_m"]["retention"] < models["q5_k_m"]["retention"]
    assert models["q4_k_m+lora"]["retention"] > 0.95
    # Every variant carries its perplexity and its distance, and eight bits lie nearer than four.
    assert all(model["perplexity"] > 1 for model in models.values())
    assert all(model["divergence"] for name, model in models.items() if name != "merged")
    assert models["q8_0"]["kl"] < min(models["nf4"]["kl"], models["q4_k_m"]["kl"])
    assert models["q8_0"]["size_bytes"] < 0.6 * models["merged"]["size_bytes"]
    started = time.monotonic()
    assert names_run(ran("run", "quickstart", *small, cwd=tmp_path)) == []
    assert time.monotonic() - started < 10
    plan = {
        step["name"]: step for step in ran("plan", "quickstart", *small, "--set", "finetune.lora.rank=4", cwd=tmp_path)["steps"]
    }
    assert plan["clean"]["fresh"]
    assert plan["finetune"]["reason"] == "lora.rank 16 → 4"
    assert all(not plan[name]["fresh"] for name in ("merge", "quantize-int8", "quantize-nf4", "export", "eval"))
    _answers_chinese_and_stops(tmp_path / "runs/quickstart/export/model-q8_0.gguf")


def _answers_chinese_and_stops(path: Path) -> None:
    """After 30 steps a model rambles on now and then, after the recipe's 120 it does not: one answer must end by itself."""
    from llmkit.gguf.runtime import LlamaServer

    with LlamaServer(path, threads=2, context=512) as server:
        asked = [[{"role": "user", "content": text}] for text in ("你好，你是谁？", "什么是人工智能？", "法国的首都是哪里？")]
        answers = [server.chat(messages, max_tokens=64) for messages in asked]
    assert any(answer.stopped for answer in answers)
    assert all(any("\u4e00" <= character <= "\u9fff" for character in answer.text) for answer in answers)
