"""The `evaluate` modules, loaded by path in a process that has no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmkit.metrics.modules
from llmkit.metrics.text import score

MODULES = Path(llmkit.metrics.modules.__path__[0])
PREDICTIONS = ["今天天气很好啊", "the cat sat on the mat", "", "我喜欢 Python"]
REFERENCES = ["今天天气不好", "a cat sat on a mat", "好的", "他喜欢 Python"]

SCRIPT = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("evaluate reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

folder, *texts = json.load(sys.stdin)
modules = [evaluate.load(f"{folder}/llmkit_{name}") for name in ("bleu", "rouge", "chrf")]
predictions, references = texts
alone = {}
for module in modules:
    alone |= module.compute(predictions=predictions, references=references)
combined = evaluate.combine(modules).compute(predictions=predictions, references=references)
print(json.dumps([alone, combined]))
"""


def test_evaluate_modules_load_offline_by_path_and_agree_with_score(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([str(MODULES), PREDICTIONS, REFERENCES]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    alone, combined = json.loads(done.stdout)
    expected = pytest.approx(dict(score(PREDICTIONS, REFERENCES).metrics))
    assert alone == expected
    assert combined == expected
