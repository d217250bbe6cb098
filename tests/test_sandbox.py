"""Programs that mean harm do none, end in time and leave nothing behind; honest ones pass."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmkit import progress, sandbox
from llmkit.errors import MachineError
from llmkit.problems import Outcome, Problem
from llmkit.sandbox import ISOLATIONS, Limits, judge, judge_many
from tests.hostile import CURIOUS, HOSTILE

# An odd number, to find the jails' processes by their command line.
LIMITS = Limits(seconds=1.0471, memory_bytes=128 * 2**20, disk_bytes=8 * 2**20)
NOBODY = 65534
PROBLEM = Problem("t/0", "def one():\n", "one", "    return 1\n", "def check(candidate):\n    assert candidate() == 1\n")
RIGHT = "def one():\n    return 1\n"
# Without namespaces and as root the interpreter has to be one that an ordinary user can read.
PYTHONS = [os.path.realpath(sys.executable), *filter(None, (shutil.which(name, path="/usr/bin") for name in ("python3",)))]


@dataclass
class Ran:
    """All hostile programs, run once under one isolation; and whether the sentinels stand."""

    outcomes: dict[str, Outcome]
    seconds: dict[str, float]
    file_text: str
    names: list[str]
    process_lives: bool
    heard: bool
    left_over: list[str]


def jails(marker: str = "1.0471") -> list[str]:
    """The processes that still run for one of our jails."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            found.append(folder.name)
    return found


def use_python_for(isolation: str, patch: pytest.MonkeyPatch) -> None:
    """Skip where this system cannot give the isolation."""
    for python in PYTHONS:
        patch.setattr(sandbox, "_PYTHON", (python, *sandbox._PYTHON[1:]))
        patch.setattr(sandbox, "_libraries", lambda python=python: libraries(python))
        try:
            if sandbox.run("import decimal, json", "", limits=sandbox.DEFAULT, isolation=isolation).passed:
                return
        except MachineError:
            continue
    pytest.skip(f"no {isolation} here")


def libraries(python: str) -> tuple[str, ...]:
    folders = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", str(Path(python).parents[1] / "lib"))
    return tuple(dict.fromkeys(one for one in folders if os.path.exists(one)))


@pytest.fixture(scope="module", params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        use_python_for(request.param, patch)
        yield request.param


@pytest.fixture(scope="module")
def ran(isolation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Runs them all, a few at a time, set on a file, a folder, a process and a port that everyone may touch."""
    folder = Path("/var/tmp") / tmp_path_factory.mktemp("sentinel").name  # /tmp exists within the jail as well
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    file = folder / "file"
    file.write_text("precious")
    file.chmod(0o666)
    # The same user as the programs, so that it is not the user that protects it.
    process = subprocess.Popen([PYTHONS[-1], "-c", "import time; time.sleep(300)"], user=NOBODY if os.getuid() == 0 else None)
    stream, datagram = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(stream.getsockname())
    seconds: dict[str, float] = {}

    def attempt(item: tuple[str, str]) -> tuple[str, Outcome]:
        name, program = item
        for key, value in {
            "file": str(file),
            "folder": str(folder),
            "pid": process.pid,
            "port": stream.getsockname()[1],
        }.items():
            program = program.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
        began = time.monotonic()
        outcome = sandbox.run(program, "assert 1 == 1", limits=LIMITS, isolation=isolation)
        seconds[name] = time.monotonic() - began
        return name, outcome

    programs = HOSTILE | (CURIOUS if isolation == "namespaces" else {})
    try:
        with ThreadPoolExecutor(4) as executor:
            outcomes = dict(executor.map(attempt, programs.items()))
        heard = [waiting(stream), waiting(datagram)]
        names = sorted(one.name for one in folder.iterdir())
        yield Ran(outcomes, seconds, file.read_text(), names, process.poll() is None, any(heard), jails())
    finally:
        process.kill()
        process.wait()
        stream.close()
        datagram.close()
        shutil.rmtree(folder)


def waiting(one: socket.socket) -> bool:
    one.settimeout(0.2)
    try:
        return bool(one.accept() if one.type == socket.SOCK_STREAM else one.recv(9))
    except TimeoutError:
        return False


@pytest.mark.parametrize("name", [*HOSTILE, *CURIOUS])
def test_a_hostile_program_fails_in_time(ran: Ran, name: str) -> None:
    if name not in ran.outcomes:
        pytest.skip("reading is not held back without namespaces")
    assert not ran.outcomes[name].passed
    assert ran.outcomes[name].why
    # The rest is the machine's: other tests and other jails share it.
    assert ran.seconds[name] < LIMITS.seconds + 8


def test_after_all_hostile_programs_every_sentinel_stands(ran: Ran) -> None:
    assert ran.file_text == "precious"
    assert ran.names == ["file"]
    assert ran.process_lives
    assert not ran.heard


def test_hostile_programs_leave_no_process_behind(ran: Ran) -> None:
    for _ in range(50):
        if not jails():
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {jails()}")


def test_the_limit_of_time_is_told_from_other_failures(ran: Ran) -> None:
    assert ran.outcomes["sleep"].timed_out or ran.outcomes["sleep"].why.startswith("PermissionError")
    assert ran.outcomes["endless loop"].timed_out
    assert ran.outcomes["deaf to signals"].timed_out
    assert not ran.outcomes["bad pointer"].timed_out
    assert not ran.outcomes["leaves early"].timed_out


def test_an_honest_program_passes_with_the_standard_library_and_no_environment(
    isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    program = "import os, re, math, json, decimal, datetime, collections, dataclasses, heapq, hashlib, typing, zlib\n"
    test = "assert 'SECRET' not in os.environ\nassert json.loads('[1]') == [1] and len(hashlib.sha256(b'').digest()) == 32"
    assert sandbox.run(program, test, limits=Limits(), isolation=isolation) == Outcome(True)


def test_sets_iterate_alike_in_every_run(isolation: str) -> None:
    program = "raise ValueError(str(list({'a', 'b', 'c', 'd', 'e', 'f'})))"
    assert len({sandbox.run(program, "", limits=Limits(), isolation=isolation).why for _ in range(3)}) == 1


def test_a_dataclass_with_postponed_annotations_works(isolation: str) -> None:
    program = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
    assert sandbox.run(program, "assert A().x == 1", limits=Limits(), isolation=isolation).passed


def test_asyncio_works(isolation: str) -> None:
    program = "import asyncio\nasync def one():\n    await asyncio.sleep(0)\n    return 1\n"
    assert sandbox.run(program, "assert asyncio.run(one()) == 1", limits=Limits(), isolation=isolation) == Outcome(True)


def test_in_namespaces_a_program_may_use_a_few_threads_processes_and_files() -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_python_for("namespaces", patch)
        program = (
            "import os, threading\nfrom concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(4) as pool:\n    squares = list(pool.map(lambda x: x * x, range(8)))\n"
            "open('mine', 'w').write('text')\npid = os.fork()\nif pid == 0:\n    os._exit(3)\n"
        )
        test = "assert squares[3] == 9 and open('mine').read() == 'text' and os.waitpid(pid, 0)[1] == 3 << 8"
        assert sandbox.run(program, test, limits=Limits(), isolation="namespaces") == Outcome(True)


def test_judge_tells_right_from_wrong_and_why() -> None:
    assert judge(PROBLEM, RIGHT) == Outcome(True)
    assert judge(PROBLEM, "def one():\n    return 2\n") == Outcome(False, "AssertionError")
    assert judge(PROBLEM, "def one(:\n").why.startswith("SyntaxError")
    assert judge(PROBLEM, "def two():\n    return 1\n").why.startswith("NameError")
    assert judge(PROBLEM, " \n") == Outcome(False, "no code")
    assert "characters" in judge(PROBLEM, "#" * 100_001).why


def test_no_control_character_of_a_program_reaches_a_terminal() -> None:
    why = judge(PROBLEM, "raise ValueError('\\x1b[2J\\x07 gone')").why
    assert why.startswith("ValueError")
    assert why.isprintable()


def test_many_come_back_in_their_order_whatever_the_number_of_workers() -> None:
    programs = [
        f"import time\ntime.sleep({wait})\ndef one():\n    return {value}\n" for wait, value in ((0.3, 1), (0, 2), (0, 1))
    ]
    for workers in (1, 3):
        outcomes = list(judge_many([(PROBLEM, program) for program in programs], workers=workers))
        assert [outcome.passed for outcome in outcomes] == [True, False, True]


def test_what_runs_ends_by_itself_when_llmkit_is_killed() -> None:
    source = (
        "from llmkit import sandbox\n"
        "sandbox.run('import time\\ntime.sleep(600)', '', limits=sandbox.Limits(seconds=2.0943), isolation=sandbox.isolation())"
    )
    process = subprocess.Popen([sys.executable, "-c", source])
    wait_for(lambda: bool(jails("2.0943")), seconds=20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not jails("2.0943"), seconds=20)


def wait_for(condition: object, *, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_where_namespaces_are_refused_a_note_says_what_is_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)

    def run(program: str, test: str, *, limits: Limits, isolation: str) -> Outcome:
        if isolation == "namespaces":
            raise MachineError("no", code="LK0718", where="Operation not permitted: unshare")
        return Outcome(True)

    monkeypatch.setattr(sandbox, "run", run)
    assert sandbox.isolation.__wrapped__() == "limits"
    assert "without namespaces" in said[0]
    assert "Operation not permitted" in said[0]


def test_where_nothing_holds_a_program_in_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "run", lambda *_, **__: Outcome(False, "ImportError"))
    with pytest.raises(MachineError, match="cannot be run safely") as caught:
        sandbox.isolation.__wrapped__()
    assert "limits: ImportError" in caught.value.where


@pytest.mark.skipif(os.getuid() != 0, reason="every other test runs as an ordinary user already")
def test_an_ordinary_user_gets_namespaces_too() -> None:
    python = shutil.which("python3", path="/usr/bin")
    if (
        python is None
        or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode
    ):
        pytest.skip("no interpreter that an ordinary user can read")
    program = (
        b"import os\nopen('/tmp/x', 'w').write('x')\nraise ValueError([os.getuid(), os.getpid(), os.path.exists('/home')])"
    )
    sizes = ("2", str(2**28), str(2**23), "8", str(len(program)))
    # The jail's own folder may be closed to other users; its text goes where all can read.
    folder = Path("/var/tmp/llmkit-jail-test")
    folder.mkdir(exist_ok=True)
    try:
        jail = shutil.copy(Path(sandbox.__file__).with_name("jail.py"), folder)
        command = [python, "-P", "-s", "-S", "-B", str(jail), "namespaces", *sizes, *libraries(python)]
        done = subprocess.run(command, input=program, capture_output=True, user=1000, group=1000, extra_groups=[], check=True)
    finally:
        shutil.rmtree(folder)
    if done.stdout.startswith(b"broken"):
        pytest.skip(done.stdout.decode())
    assert done.stdout == b"failed\nValueError: [1000, 1, False]"
