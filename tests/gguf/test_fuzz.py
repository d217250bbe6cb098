"""Two thousand damaged files: each is refused in a line or read for what it is; none stalls, none leads out of the run."""

import json
import subprocess
import sys
from pathlib import Path

INPUTS = 2000


def test_damaged_files_end_in_one_line_in_time_in_memory_and_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    secret = tmp_path / "outside.safetensors"
    secret.write_bytes(b"not to be read")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf.fuzzing", str(folder), str(INPUTS), "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"stopped at input {done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["strays"] == []
    assert found["refused"] + found["accepted"] == INPUTS
    assert found["refused"] > INPUTS // 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside.safetensors", "run"]
