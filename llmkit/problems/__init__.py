"""Programming problems in HumanEval's JSON Lines (Chen et al. 2021, arXiv:2107.03374), and how an attempt at one ended.

The files beside this one are a small set of our own, half Chinese, half English. Knows their shape; runs nothing and scores
nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from llmkit.errors import DataError

BUNDLED = Path(__file__).parent
MAX_BYTES = 64 * 2**20
MAX_PROBLEMS = 20_000
MAX_FIELD_CHARS = 100_000

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True)
class Problem:
    """One function to write.

    `prompt`: its imports, signature and docstring; `canonical_solution`: a body that solves it, indented; `test`: source that
    defines `check(candidate)`, which raises where the candidate is wrong.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    @property
    def language(self) -> str:
        """`zh` if the prompt holds a Chinese character, else `en`."""
        return "zh" if _HAN.search(self.prompt) else "en"


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended. `why`: one line, empty if it passed; `timed_out`: it ran into the limit of time."""

    passed: bool
    why: str = ""
    timed_out: bool = False


def load(path: Path = BUNDLED) -> list[Problem]:
    """The problems of one `.jsonl` file, or of all such files of a folder, in the order of their names.

    Raises:
        DataError: nothing to read, more than 64 MiB, or a line that is no problem; says which.
    """
    try:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        # A pipe or a device would never end.
        missing = [file for file in files if not file.is_file()]
        size = 0 if missing else sum(file.stat().st_size for file in files)
    except OSError as error:
        raise DataError(f"cannot read the problems: {error.strerror}", code="LK0113", where=str(path)) from None
    if missing:
        raise DataError("no such file", code="LK0113", where=str(missing[0]), next="give a .jsonl file or a folder of them")
    if size > MAX_BYTES:
        raise DataError(
            f"{size / 2**20:,.0f} MiB of problems", code="LK0717", where=str(path), next="split them: 64 MiB at most at once"
        )
    problems = list(islice((problem for file in files for problem in _read(file)), MAX_PROBLEMS + 1))
    if not problems:
        raise DataError(
            "no problems here", code="LK0717", where=str(path), next="give a folder of .jsonl files in HumanEval's format"
        )
    if len(problems) > MAX_PROBLEMS:
        raise DataError(f"more than {MAX_PROBLEMS:,} problems", code="LK0717", where=str(path), next="split them")
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id in seen:
            raise DataError(
                f"two problems have the task_id {problem.task_id[:60]!r}", code="LK0717", where=str(path), next="rename one"
            )
        seen.add(problem.task_id)
    return problems


def _read(file: Path) -> Iterator[Problem]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES)
    except OSError as error:
        raise DataError(f"cannot read the problems: {error.strerror}", code="LK0113", where=str(file)) from None
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield _problem(line, f"{file}:{number}")


def _problem(line: bytes, where: str) -> Problem:
    try:
        found: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", code="LK0717", where=where, next="a problem is one JSON object a line") from None
    if not isinstance(found, dict):
        raise DataError("a problem is a JSON object", code="LK0717", where=where)
    names = [one.name for one in fields(Problem)]
    bad = [name for name in names if not isinstance(found.get(name), str) or len(found[name]) > MAX_FIELD_CHARS]
    if bad:
        raise DataError(
            f"{', '.join(bad)}: missing, no text, or more than {MAX_FIELD_CHARS:,} characters",
            code="LK0717",
            where=where,
            next=f"a problem has {', '.join(names)}",
        )
    problem = Problem(**{name: found[name] for name in names})
    if not problem.task_id.strip() or not problem.entry_point.isidentifier():
        raise DataError("an empty task_id, or an entry_point that is no Python name", code="LK0717", where=where)
    if not re.search(rf"^(?:async )?def {problem.entry_point}\b", problem.prompt, re.MULTILINE):
        raise DataError(f"the prompt does not define {problem.entry_point}", code="LK0717", where=where)
    if "def check" not in problem.test:
        raise DataError("the test does not define check(candidate)", code="LK0717", where=where)
    return problem
