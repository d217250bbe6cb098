"""The bundled problems are right and their tests are sharp; files of others are read with suspicion."""

import ast
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import problems
from llmkit.errors import DataError
from llmkit.problems import Problem, load
from llmkit.sandbox import Limits, judge_many

BUNDLED = load()
GOOD: dict[str, Any] = {
    "task_id": "a/1",
    "prompt": 'def f():\n    """One."""\n',
    "entry_point": "f",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


def write(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_twenty_problems_ship_in_each_language() -> None:
    languages = [problem.language for problem in BUNDLED]
    assert languages.count("zh") == languages.count("en") == 20


def test_every_canonical_solution_passes_and_an_empty_function_fails() -> None:
    right = [(problem, problem.prompt + problem.canonical_solution) for problem in BUNDLED]
    wrong = [(problem, problem.prompt + "    return None\n") for problem in BUNDLED]
    assert [
        problem.task_id for (problem, _), end in zip(right, judge_many(right, workers=2), strict=True) if not end.passed
    ] == []
    assert [problem.task_id for (problem, _), end in zip(wrong, judge_many(wrong, workers=2), strict=True) if end.passed] == []


def test_every_bundled_example_is_true() -> None:
    """The docstring's examples, run by doctest in the sandbox."""
    run = "\nimport doctest\nfound = doctest.testmod(__import__('program'))\nassert found.attempted and not found.failed\n"
    examples = [
        (Problem(one.task_id, one.prompt, one.entry_point, "", f"def check(candidate):\n    pass\n{run}"), one)
        for one in BUNDLED
    ]
    attempts = [(shown, one.prompt + one.canonical_solution) for shown, one in examples]
    ends = judge_many(attempts, workers=2)
    assert [(one.task_id, end.why) for (_, one), end in zip(examples, ends, strict=True) if not end.passed] == []


@pytest.mark.slow
def test_the_bundled_tests_see_nine_in_ten_small_mistakes() -> None:
    """Mutants of each canonical solution: a number one higher, a comparison turned; some are equivalent to it."""
    attempts = [
        (problem, mutant) for problem in BUNDLED for mutant in mutants(problem.prompt + problem.canonical_solution, limit=6)
    ]
    ends = list(judge_many(attempts, workers=2, limits=Limits(seconds=1.5)))
    survivors = [(problem.task_id, mutant) for (problem, mutant), end in zip(attempts, ends, strict=True) if end.passed]
    assert len(attempts) > 100
    assert len(survivors) < 0.1 * len(attempts), survivors


TURNED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def mutants(source: str, *, limit: int) -> Iterator[str]:
    tree = ast.parse(source)
    for place, node in enumerate(ast.walk(tree)):
        is_number = isinstance(node, ast.Constant) and type(node.value) is int
        if limit and (is_number or (isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED)):
            limit -= 1
            other = copy.deepcopy(tree)
            twin = list(ast.walk(other))[place]
            if isinstance(twin, ast.Constant):
                twin.value += 1
            elif isinstance(twin, ast.Compare):
                twin.ops[0] = TURNED[type(twin.ops[0])]()
            yield ast.unparse(other)


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", GOOD | {"task_id": "b"})
    write(tmp_path / "a.jsonl", GOOD | {"task_id": "a", "extra": [1]}, GOOD | {"task_id": "c"})
    (tmp_path / "notes.txt").write_text("x")
    assert [problem.task_id for problem in load(tmp_path)] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt": None}, "prompt"),
        ({"test": 3}, "test"),
        ({"canonical_solution": "x" * 100_001}, "canonical_solution"),
        ({"entry_point": "f(); import os"}, "entry_point"),
        ({"entry_point": "g"}, "does not define g"),
        ({"task_id": " "}, "task_id"),
        ({"test": "assert f()"}, "check"),
    ],
)
def test_a_bad_problem_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, GOOD | {"task_id": "a/2"} | change)
    with pytest.raises(DataError, match=what) as caught:
        load(path)
    assert caught.value.where == f"{path}:2"


def test_two_problems_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a/1"):
        load(write(tmp_path / "p.jsonl", GOOD, GOOD))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "broken.jsonl").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "empty.jsonl", tmp_path / "sub", Path("a\0b"), Path("x" * 5000)):
        with pytest.raises(DataError):
            load(path)


def test_a_pipe_and_a_file_too_large_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path)
    monkeypatch.setattr(problems, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="MiB of problems"):
        load(write(tmp_path / "large.jsonl", GOOD))


NESTED = st.recursive(st.none() | st.text(max_size=9), st.lists).map(lambda value: json.dumps(value).encode())


@given(st.binary(max_size=200) | NESTED)
def test_any_bytes_give_a_data_error(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(raw)
        file.flush()
        with pytest.raises(DataError):
            load(Path(file.name))
