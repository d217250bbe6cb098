"""What this machine has, a container's limits included."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from llmkit.planning import machine


def test_without_a_limit_it_is_the_machine_s_own(tmp_path: Path) -> None:
    found = machine.look(tmp_path / "not" / "there", cgroups=tmp_path)
    assert found.memory == psutil.virtual_memory().total
    assert 0 < found.memory_free <= found.memory
    assert not found.limited
    assert found.processors >= 1
    assert found.disk_free > 0


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_s_limit_counts(tmp_path: Path, limit: str, used: str) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000000000\n")
    (tmp_path / used).write_text("400000000\n")
    found = machine.look(tmp_path, cgroups=tmp_path)
    assert (found.memory, found.memory_free, found.limited) == (10**9, 6 * 10**8, True)


@pytest.mark.parametrize("text", ["max", "", "nonsense", str(2**63 - 4096)])
def test_a_limit_that_is_none_does_not_count(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text)
    (tmp_path / "memory.current").write_text("1")
    assert not machine.look(tmp_path, cgroups=tmp_path).limited


def test_auto_precision_is_what_the_engine_would_choose() -> None:
    from llmkit.engine import precision

    found = machine.look(Path())
    if not found.gpus:
        assert found.precision == precision.choose("auto")
