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
PREDICTIONS = ["今天天气很好啊", "the cat sat on the mat", "", "我喜欢 Python", "Sorry, I cannot"]
REFERENCES = ["今天天气不好", "a cat sat on a mat", "好的", "他喜欢 Python", "Of course."]

SCRIPT = """
import json, pathlib, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("evaluate reached for the network")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
from llmkit.errors import UsageError

folder, *texts = json.load(sys.stdin)
tests = {
    "llmkit_refusals": {"is_refusal": lambda text: "Sorry" in text},
    "llmkit_sensitive": {"is_sensitive": lambda text: "cat" in text},
}
names = sorted(path.name for path in pathlib.Path(folder).glob("llmkit_*"))
modules = [evaluate.load(f"{folder}/{name}", **tests.get(name, {})) for name in names]
predictions, references = texts
alone = {}
for module in modules:
    alone |= module.compute(predictions=predictions, references=references)
combined = evaluate.combine(modules).compute(predictions=predictions, references=references)
try:
    evaluate.load(f"{folder}/llmkit_refusals")
    told = ""
except UsageError as error:
    told = error.next
print(json.dumps([alone, combined, told]))
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
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alone, combined, told = json.loads(done.stdout)
    scores = score(PREDICTIONS, REFERENCES, is_refusal=lambda text: "Sorry" in text, is_sensitive=lambda text: "cat" in text)
    expected = pytest.approx(scores.metrics)
    assert alone == expected
    assert combined == expected
    assert "is_refusal=" in told
