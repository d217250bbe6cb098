"""Runs code a model wrote against a problem's test, where it can do no harm. Knows processes; nothing of models and scores.

Each attempt has a process of its own, locked in by `jail.py`, which says what the two isolations are. About 25 ms of
processor time an attempt, half of it Python's start.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmkit import progress
from llmkit.errors import MachineError
from llmkit.problems import Outcome, Problem

MAX_PROGRAM_CHARS = 100_000
ISOLATIONS = ("namespaces", "limits")
# How long a jail may be late before it is given up: far more than a loaded machine takes.
LATE_SECONDS = 30

_JAIL = Path(__file__).with_name("jail.py")
# The interpreter itself and not a virtual environment's link to it: -S and the rest keep all but the standard library out.
_PYTHON = (os.path.realpath(sys.executable), "-P", "-s", "-S", "-B", "-X", "utf8")
_PROBE = "import decimal, json\n"


@dataclass(frozen=True)
class Limits:
    """What one attempt may use; `memory_bytes` of address space is for each of its `processes`, threads among them.

    Without namespaces it may start no process and write no file.
    """

    seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    disk_bytes: int = 16 * 2**20
    processes: int = 8


DEFAULT = Limits()


def judge(problem: Problem, completion: str, *, limits: Limits = DEFAULT) -> Outcome:
    """Whether a program that defines the problem's function passes its test; returns within the limit of time.

    Raises:
        MachineError: this system can hold no program in.
    """
    if not completion.strip():
        return Outcome(False, "no code")
    if len(completion) > MAX_PROGRAM_CHARS:
        return Outcome(False, f"a program of more than {MAX_PROGRAM_CHARS:,} characters")
    return run(completion, f"{problem.test}\n\ncheck({problem.entry_point})\n", limits=limits, isolation=isolation())


def judge_many(attempts: Iterable[tuple[Problem, str]], *, workers: int, limits: Limits = DEFAULT) -> Iterator[Outcome]:
    """`judge` for each, `workers` at a time; yields in the order given.

    Raises:
        MachineError: as `judge`.
    """
    isolation()
    with ThreadPoolExecutor(workers) as executor:
        yield from executor.map(lambda attempt: judge(*attempt, limits=limits), attempts)


@cache
def isolation() -> str:
    """The strongest of ISOLATIONS that this system gives; tried once, and a note says so if it is the weaker one.

    Raises:
        MachineError: none works.
    """
    why = []
    for name in ISOLATIONS:
        try:
            outcome = run(_PROBE, _PROBE, limits=DEFAULT, isolation=name)
        except MachineError as error:
            why.append(f"{name}: {error.where}")
            continue
        if outcome.passed:
            if name == "limits":
                progress.note(
                    "model-written code runs without namespaces here: it can read files, but may write none, "
                    f"start no process and use no network ({'; '.join(why)})"
                )
            return name
        why.append(f"{name}: {outcome.why}")
    raise MachineError(
        "model-written code cannot be run safely here",
        code="LK0718",
        where="; ".join(why),
        next="run on Linux 5.14 or newer with user namespaces, or as an ordinary user who can read Python's library",
    )


def run(program: str, test: str, *, limits: Limits, isolation: str) -> Outcome:
    """Run `program`, then `test` in the same module, in a jail of its own.

    Raises:
        MachineError: the jail cannot be had, or did not answer.
    """
    first, second = (text.encode("utf-8", "surrogatepass") for text in (program, test))
    sizes = (limits.seconds, limits.memory_bytes, limits.disk_bytes, limits.processes, len(first))
    command = [*_PYTHON, str(_JAIL), isolation, *map(str, sizes), *_libraries()]
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the program goes to stdin
            command,
            input=first + second,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},  # sets iterate alike in every run
            start_new_session=True,  # Ctrl-C is for llmkit, which then waits for the jails under way
            timeout=limits.seconds + LATE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(
            "the sandbox did not answer", code="LK0718", where=str(error)[:200], next="free memory or processes"
        ) from None
    verdict, _, why = done.stdout.decode("utf-8", "replace").partition("\n")
    if verdict not in ("passed", "failed", "timeout"):
        raise MachineError("the sandbox cannot be set up", code="LK0718", where=why or f"exit status {done.returncode}")
    # The program had a hand in these words, and a terminal may show them.
    shown = "".join(one if one.isprintable() else " " for one in why[:300])
    return Outcome(verdict == "passed", shown, timed_out=verdict == "timeout")


@cache
def _libraries() -> tuple[str, ...]:
    """What a Python program needs of the file system: shared libraries, and the standard library."""
    wanted = [
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"),
        *(["/nix/store"] if sys.base_prefix.startswith("/nix/") else []),
        *(f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib", os.path.dirname(os.__file__)),
    ]
    kept: list[str] = []
    for path in wanted:
        inside = any(path == one or path.startswith(f"{one}/") for one in kept)
        if not inside and os.path.exists(path):
            kept.append(path)
    return tuple(kept)
