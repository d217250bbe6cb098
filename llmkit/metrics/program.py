"""From a chat model's answer to a Python program, and what is known of it unrun. Runs nothing; knows no scores.

Nothing here trusts the text: an answer of any length or nesting gives a program or none.
"""

import ast
import re
import warnings
from textwrap import dedent, indent

from llmkit.metrics.text import clean_output
from llmkit.problems import Problem

MAX_ANSWER_CHARS = 200_000
MAX_PROGRAM_CHARS = 100_000

_ASK = {
    "en": "Complete the following Python function. Reply with one Python code block that holds the whole function and the "
    "imports it needs, and with nothing else.",
    "zh": "请补全下面的 Python 函数。只回复一个 Python 代码块，其中包含完整的函数和它需要的 import 语句，不要回复其他内容。",
}
_FENCE = re.compile(r"[ \t]*(?:>[ \t]*)?(`{3,}|~{3,})[ \t]*([\w+.-]*)")
_PYTHON = {"", "python", "py", "python3", "python2", "ipython"}
_CODE_STARTS = re.compile(r"^(?:(?:async )?def \w|class \w|@\w|import \w|from [\w.]+ import )", re.MULTILINE)
_RETURNS = re.compile(r"\b(?:return|yield)\b")
# How many trailing lines of prose, each found by its syntax error, are cut from an answer without fences.
_MAX_CUTS = 20
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.FunctionDef, ast.AsyncFunctionDef, ast.match_case)


def prompt(problem: Problem) -> list[dict[str, str]]:
    """The problem as a chat: one user turn, in the language of the problem, that asks for one fenced block of Python."""
    return [{"role": "user", "content": f"{_ASK[problem.language]}\n\n```python\n{problem.prompt.strip()}\n```"}]


def completion(answer: str, problem: Problem) -> str:
    """The program an answer holds, "" if it holds none; it need not be valid.

    It is the last fenced block that defines the function, preferably a valid one, behind what the prompt has before its
    function; else the first block, or the whole text, taken for a body of the prompt's function or, without fences, for a
    function with prose around it.
    """
    text = clean_output(answer[:MAX_ANSWER_CHARS])
    blocks = _blocks(text)
    # The last one: a later block corrects an earlier one.
    defining = [code for code in blocks or [_unfenced(text)] if _defines(code, problem.entry_point)]
    if defining:
        valid = [code for code in defining if parsed(code) is not None]
        return _behind_preamble((valid or defining)[-1], problem)
    body = next(iter(blocks), text if _RETURNS.search(text) else "")
    whole = (f"{problem.prompt.rstrip()}\n{attempt}\n" for attempt in (indent(dedent(body), "    "), f"    {body}"))
    return next((code for code in whole if body.strip() and parsed(code) is not None), "")


def parsed(program: str) -> ast.Module | None:
    """The syntax tree of a valid program with at least one statement, else None."""
    try:
        tree = _parse(program)
    except SyntaxError:
        return None
    return tree if tree.body else None


def complexity(program: str, entry_point: str) -> int | None:
    """Cyclomatic complexity (McCabe 1976) of one function, nested ones included; None if the program does not define it.

    1 and one for each if, elif, loop, except, else of a try, nested function and case of a match that can fail: what the
    mccabe package and ruff's C901 count.
    """
    tree = parsed(program)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [one for one in (tree.body if tree else ()) if isinstance(one, functions) and one.name == entry_point]
    return sum(map(_decisions, ast.walk(found[-1]))) if found else None


def _decisions(node: ast.AST) -> int:
    if isinstance(node, ast.Try | ast.TryStar):
        return int(bool(node.orelse))
    if isinstance(node, ast.Match):
        last = node.cases[-1]
        return -int(last.guard is None and _always(last.pattern))
    return int(isinstance(node, _BRANCHES))


def _always(pattern: ast.pattern) -> bool:
    """Whether a pattern matches anything: a name, `_`, or alternatives that end with one."""
    while isinstance(pattern, ast.MatchOr | ast.MatchAs):
        if isinstance(pattern, ast.MatchOr):
            pattern = pattern.patterns[-1]
        elif pattern.pattern is None:
            return True
        else:
            pattern = pattern.pattern
    return False


def _blocks(text: str) -> list[str]:
    """The Python blocks between Markdown fences (CommonMark 4.5), in order; one that is cut off counts."""
    blocks: list[str] = []
    inside: list[str] | None = None
    fence, is_python = "", True
    for line in text.split("\n"):  # not `splitlines`: what it takes for line ends may stand in a string of the program
        mark = _FENCE.match(line)
        if inside is None:
            if mark:
                inside, fence, is_python = [], mark[1], mark[2].lower() in _PYTHON
        elif mark and mark[1].startswith(fence) and not line[mark.end() :].strip() and not mark[2]:
            blocks += [dedent("\n".join(inside))] if is_python else []
            inside = None
        else:
            inside.append(line)
    if inside and is_python:
        blocks.append(dedent("\n".join(inside)))
    return [block for block in blocks if block.strip()]


def _unfenced(text: str) -> str:
    """From the first line of code to the last that fits, "" if there is none."""
    start = _CODE_STARTS.search(text)
    lines = text[start.start() :].split("\n") if start else []
    for _ in range(_MAX_CUTS):
        try:
            _parse("\n".join(lines))
            break
        except SyntaxError as error:
            lines = lines[: max((error.lineno or 1) - 1, 0)]
    return "\n".join(lines)


def _parse(program: str) -> ast.Module:
    """`ast.parse` that has SyntaxError for all it refuses: too long, too deep, NUL characters, lone surrogates."""
    if len(program) > MAX_PROGRAM_CHARS:
        raise SyntaxError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a strange escape in a string is the model's business
        try:
            return ast.parse(program)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None


def _defines(code: str, name: str) -> bool:
    return bool(re.search(rf"^(?:(?:async )?def {name}\b|{name}\s*=)", code, re.MULTILINE))


def _behind_preamble(code: str, problem: Problem) -> str:
    """With the imports and helpers that the prompt has before its function, which answers often leave out."""
    function = re.search(rf"^(?:@.*\n)*(?:async )?def {problem.entry_point}\b", problem.prompt, re.MULTILINE)
    preamble = problem.prompt[: function.start()] if function else ""
    lines = code.split("\n")
    future = [line for line in lines if line.startswith("from __future__ import")]  # these have to come first
    rest = [line for line in lines if line not in future]
    return "\n".join([*future, preamble.rstrip(), *rest]).strip("\n") + "\n"
