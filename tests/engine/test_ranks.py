"""Several processes that train together: results, failures, deaths, and an outside launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed as group

from llmkit import progress
from llmkit.engine import ranks
from llmkit.errors import DataError, LlmkitError, MachineError
from llmkit.progress import Bar


def add_up(number: int, bar: Bar) -> dict[str, object]:
    total = torch.tensor([number + group.get_rank()])
    group.all_reduce(total)
    bar.advance(1)
    progress.note(f"from {group.get_rank()}")
    return {"rank": group.get_rank(), "world": group.get_world_size(), "total": int(total), "threads": torch.get_num_threads()}


def alone(bar: Bar) -> bool:
    return group.is_initialized() or "WORLD_SIZE" in os.environ


def stumble(culprit: int, bar: Bar) -> None:
    if group.get_rank() == culprit:
        raise DataError("that record", code="LK0404", where="here", next="mend it")
    group.all_reduce(torch.zeros(1))


def die(culprit: int, bar: Bar) -> None:
    if group.get_rank() == culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    group.all_reduce(torch.zeros(1))


def break_down(culprit: int, bar: Bar) -> None:
    if group.get_rank() == culprit:
        raise KeyError("a bug")
    group.all_reduce(torch.zeros(1))


def linger(folder: str, bar: Bar) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


class Noted:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.count = 0

    def open(self, title: str, total: int | None) -> Bar:
        return self

    def close(self, bar: Bar) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int = 1, text: str = "") -> None:
        self.count += count


def test_processes_form_one_group_and_the_first_ones_result_comes_back() -> None:
    found = ranks.run(add_up, 10, processes=2, title="adding")
    assert found == {"rank": 0, "world": 2, "total": 21, "threads": max(1, len(os.sched_getaffinity(0)) // 2)}


def test_only_the_first_process_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Noted()
    monkeypatch.setattr(progress, "_sink", sink)
    ranks.run(add_up, 1, processes=2, title="adding")
    assert sink.notes == ["from 0"]
    assert sink.count == 1


def test_one_process_is_a_plain_child_without_a_group_and_without_a_launchers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.run(alone, title="working") is False


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_any_process_reaches_the_user_as_it_was_raised(culprit: int) -> None:
    with pytest.raises(DataError, match="that record") as caught:
        ranks.run(stumble, culprit, processes=2, title="reading")
    assert (caught.value.code, caught.value.where, caught.value.next) == ("LK0404", "here", "mend it")


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_process_that_dies_takes_the_others_with_it_and_is_named(culprit: int) -> None:
    started = time.monotonic()
    with pytest.raises(MachineError, match=f"process {culprit} of the 2 that were training was killed by SIGKILL") as caught:
        ranks.run(die, culprit, processes=2, title="training")
    assert caught.value.code == "LK0905"
    assert time.monotonic() - started < 30


def test_a_bug_in_one_process_is_told_rather_than_the_others_loss_of_it() -> None:
    with pytest.raises(LlmkitError, match="a bug") as caught:
        ranks.run(break_down, 1, processes=2, title="training")
    assert caught.value.code == "LK0904"
    Path(caught.value.next.rpartition(" ")[2]).unlink()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    ranks._take_device(0)
    with pytest.raises(MachineError, match="2 processes need as many GPUs on this machine; it has 1"):
        ranks._take_device(1)
    assert taken == [0]


PARENT = """
import sys
from llmkit.engine import ranks
from tests.engine.test_ranks import linger
if __name__ == "__main__":
    ranks.run(linger, sys.argv[1], processes=2, title="waiting")
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=SLOW), pytest.param(signal.SIGINT, marks=SLOW)]
)
def test_no_process_outlives_its_parent(tmp_path: Path, blow: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, "utf-8")
    folder = tmp_path / "children"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script, folder], env=environment, stderr=subprocess.DEVNULL) as parent:
        assert _soon(lambda: len(list(folder.iterdir())) == 2, seconds=60)
        parent.send_signal(blow)
    children = [int(path.name) for path in folder.iterdir()]
    assert _soon(lambda: not any(map(_lives, children)), seconds=10)


# A launched command: the first process hands out jobs in `main`, the others follow.
LAUNCHED = """
import os, sys, types
import torch
from torch import distributed as group
from llmkit import errors
from llmkit.engine import ranks

def add_up(number, bar):
    total = torch.tensor([number])
    group.all_reduce(total)
    return int(total)

def stumble(culprit, bar):
    if group.get_rank() == culprit:
        raise errors.DataError("that record", code="LK0404", where="here", next="mend it")
    group.all_reduce(torch.zeros(1))

jobs = types.ModuleType("llmkit.jobs")
for function in (add_up, stumble):
    function.__module__ = jobs.__name__
    setattr(jobs, function.__name__, function)
sys.modules[jobs.__name__] = jobs

def end(code):
    with open(f"{sys.argv[1]}/{os.environ['RANK']}", "w") as stream:
        stream.write(f"{code}")
    sys.exit(int(str(code).split()[0]))

if os.environ["RANK"] != "0":
    end(ranks.follow())
try:
    with ranks.leading():
        SCRIPT
except errors.LlmkitError as error:
    end(f"{error.exit_code} {error.code} {error.what} {error.where}")
end(0)
"""
OUTCOMES = {
    "two jobs": ("assert [ranks.run(add_up, n, title='x') for n in (1, 5)] == [2, 10]", "0", "0"),
    "no job": ("pass", "0", "0"),
    "a failure between jobs": (
        "ranks.run(add_up, 1, title='x'); raise errors.GateError('fell short', code='LK0704')",
        "1 LK0704 fell short ",
        "1",
    ),
    "a failure of the first": ("ranks.run(stumble, 0, title='x')", "2 LK0404 that record here", "2"),
    "a failure of another": ("ranks.run(stumble, 1, title='x')", "2 LK0404 that record here", "2"),
    "a job from elsewhere": ("f = lambda bar: None; f.__module__ = 'os'; ranks.run(f, title='x')", "3 LK0411 a job", "3"),
}


QUICK = ("two jobs", "a failure of another")


@pytest.mark.parametrize("outcome", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in OUTCOMES])
def test_under_a_launcher_the_others_do_the_firsts_jobs_and_end_with_its_code(tmp_path: Path, outcome: str) -> None:
    body, first, other = OUTCOMES[outcome]
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.replace("SCRIPT", body), "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run([*launch, script, tmp_path], timeout=100, capture_output=True, text=True, check=False)
    assert (tmp_path / "0").is_file(), done.stderr
    assert (tmp_path / "0").read_text("utf-8").startswith(first)
    assert (tmp_path / "1").read_text("utf-8") == other


def _soon(holds: Callable[[], bool], *, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
