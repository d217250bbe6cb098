"""Which checkpoints count."""

from pathlib import Path

from llmkit.engine import checkpoints


def written(folder: Path, step: int) -> Path:
    path = folder / f"{checkpoints.PREFIX}{step}"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


def test_the_newest_whole_checkpoint_counts_and_a_torn_one_is_removed(tmp_path: Path) -> None:
    for step in (20, 100):
        checkpoints.mark(written(tmp_path, step), run="a", seconds=step / 10)
    torn = written(tmp_path, 120)
    found = checkpoints.newest(tmp_path, run="a")
    assert found == checkpoints.Checkpoint(tmp_path / "checkpoint-100", 100, 10.0)
    assert not torn.exists()


def test_a_checkpoint_of_another_run_or_with_a_short_file_is_removed(tmp_path: Path) -> None:
    other, short = written(tmp_path, 1), written(tmp_path, 2)
    checkpoints.mark(other, run="b", seconds=1)
    checkpoints.mark(short, run="a", seconds=1)
    (short / "adapter_model.safetensors").write_bytes(b"weigh")
    assert checkpoints.newest(tmp_path, run="a") is None
    assert not list(tmp_path.iterdir())


def test_a_garbled_marker_is_no_marker(tmp_path: Path) -> None:
    for step, text in enumerate(["[]", "{", '{"run": "a"}', '{"run": "a", "seconds": 1, "files": 3}']):
        (written(tmp_path, step) / checkpoints.MARKER).write_text(text)
    assert checkpoints.newest(tmp_path, run="a") is None
