"""Programs out of chat answers, and their complexity against ruff's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.metrics.program import completion, complexity, parsed, prompt
from llmkit.problems import Problem, load

PROBLEM = Problem(
    "t/0",
    'from typing import List\n\n\ndef helper():\n    return 1\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
    "total",
    "    return sum(xs)\n",
    "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
)
WHOLE = "def total(xs: List[int]) -> int:\n    return sum(xs)"
RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent))


def value(program: str) -> object:
    """What the program's function says of [1, 2]; only programs of this file are run."""
    scope: dict[str, object] = {}
    exec(program, scope)
    function = scope["total"]
    assert callable(function)
    return function([1, 2])


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure!\n\n```python\n{WHOLE}\n```\nIt adds them up.",
        f"```py\n{WHOLE}\n```",
        f"~~~~ python\n{WHOLE}\n~~~~",
        f"```\n{WHOLE}",
        f"1. First:\n   ```python\n   {WHOLE.replace(chr(10), chr(10) + '   ')}\n   ```",
        f"```python\ndef total(xs):\n    return 0\n```\nBetter:\n```python\n{WHOLE}\n```\n```bash\npython x.py\n```",
        f"```python\n{WHOLE}\n```\nCall it:\n```python\nprint(total([1]))\n```",
        f"```python\n{WHOLE}\n```\nor\n```python\ndef total(xs\n```",
        f"```python\nfrom __future__ import annotations\n{WHOLE}\n```",
        f"<think>def total(xs): return 5</think>\n```python\n{WHOLE}\n```",
        "```python\nreturn sum(xs)\n```",
        "```python\n    y = sum(xs)\n    return y\n```",
        "```python\ny = sum(xs)\nreturn y\n```",
        "    y = sum(xs)\n    return y",
        WHOLE,
        f"Here is the function.\n\n{WHOLE}\n\nIt uses the sum of Python's own.\nThat is all.",
        f"这是函数：\n{WHOLE}\n\n它返回总和。",
        "```python\ntotal = lambda xs: helper() + xs[1]\n```",
        f"```python\n{PROBLEM.prompt}    return sum(xs)\n```",
    ],
)
def test_the_function_is_found_in_an_answer(answer: str) -> None:
    assert value(completion(answer, PROBLEM)) == 3


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", "抱歉，我不会。", "```\n```", "Sorry", "You may return it.", "```json\n{}\n```"]
)
def test_an_answer_without_code_gives_no_program(answer: str) -> None:
    assert completion(answer, PROBLEM) == ""


@pytest.mark.parametrize("mark", ["\u2028", "\x0c", "\x85", "\x1e"])
@pytest.mark.parametrize("fence", ["```python\n{}\n```", "{}"])
def test_what_ends_no_line_of_python_stays_in_its_string(mark: str, fence: str) -> None:
    code = f"def total(xs):\n    return '{mark}'"
    assert code in completion(fence.format(code), PROBLEM)


def test_a_broken_function_is_kept_and_known_to_be_broken() -> None:
    program = completion("```python\ndef total(xs:\n    return\n```", PROBLEM)
    assert "def total(xs:" in program
    assert parsed(program) is None


def test_canonical_solutions_are_found_as_bodies_and_as_functions() -> None:
    for problem in load():
        for answer in (problem.canonical_solution, problem.prompt + problem.canonical_solution):
            found = completion(f"```python\n{answer}```", problem)
            assert complexity(found, problem.entry_point) == complexity(
                problem.prompt + problem.canonical_solution, problem.entry_point
            )


def test_the_prompt_asks_in_the_problems_language_and_holds_the_function() -> None:
    for problem in load():
        (message,) = prompt(problem)
        assert message["role"] == "user"
        assert problem.prompt.strip() in message["content"]
        assert message["content"].startswith("请补全" if problem.language == "zh" else "Complete")


@given(
    st.text()
    | st.lists(st.sampled_from(["```", "~~~", "def total(", "\n", "    ", "return", "xs", "'''", "(", "\\"])).map("".join)
)
def test_any_text_gives_a_program_or_none(text: str) -> None:
    program = completion(text, PROBLEM)
    assert parsed(program) is not None or "total" in program or program == ""
    complexity(program, "total")


@pytest.mark.parametrize(
    "text",
    [
        *("(" * 90_000, "-" * 90_000 + "1", "1" + "+1" * 45_000, "a" + ".b" * 45_000, "if 1:\n 1\n" + "elif 1:\n 1\n" * 5000),
        *("```\n" * 50_000, "def f(\n" * 20_000, "x" * 1_000_000, "lambda:" * 12_000 + "1", "\0" * 99, "\ud800"),
    ],
    ids=lambda text: ascii(text[:9]),
)
def test_huge_deep_and_strange_texts_end_soon(text: str) -> None:
    parsed(text)
    complexity(f"def total():\n    pass\n{text}", "total")
    completion(f"```python\ndef total():\n    pass\n{text}", PROBLEM)
    completion(text, PROBLEM)


BODIES = r"""
return 1
if a: pass
if a: pass\nelif b: pass\nelse: pass
for x in a: pass\nelse: pass
while a: break
try: pass\nexcept ValueError: pass\nexcept KeyError: pass
try: pass\nexcept ValueError: pass\nelse: pass\nfinally: pass
try: pass\nexcept* ValueError: pass
with a: \n  if b: pass
match a:\n  case 1: pass\n  case _: pass
match a:\n  case 1: pass\n  case 2 if b: pass
match a:\n  case 1: pass\n  case x: pass
match a:\n  case 1 | _: pass
match a:\n  case (1 | _) as x: pass
match a:\n  case _ if b: pass
def inner():\n  if a: pass
class Inner:\n  def method(self):\n    for x in a: pass
x = [y for y in a if b] or (a if b else c)
assert a and b
lambda: a if b else c
async def inner():\n  async for x in a: pass
""".strip().splitlines()


@pytest.mark.skipif(RUFF is None, reason="ruff is no part of this environment")
def test_complexity_is_what_ruff_counts() -> None:
    bodies = [body.replace(r"\n", "\n    ") for body in BODIES]
    functions = [f"def f{number}(a, b, c):\n    {body}\n" for number, body in enumerate(bodies)]
    functions += [one.prompt + one.canonical_solution for one in load()]
    names = [*(f"f{number}" for number in range(len(bodies))), *(one.entry_point for one in load())]
    for name, function in zip(names, functions, strict=True):
        assert complexity(function, name) == by_ruff(function, name), function


def by_ruff(function: str, name: str) -> int:
    options = ["--isolated", "--select", "C901", "--config", "lint.mccabe.max-complexity=0", "--output-format", "json"]
    assert RUFF is not None
    done = subprocess.run([RUFF, "check", *options, "-"], input=function, capture_output=True, text=True, check=False)
    messages = [one["message"] for one in json.loads(done.stdout) if f"`{name}`" in one["message"]]
    return int(messages[0].partition("(")[2].partition(" ")[0])
