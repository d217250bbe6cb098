"""A rule that a user wrote: a Python file with `judge`. Knows how to load and call it; who may run code, `--allow-code` says.

    def judge(record: dict) -> dict | str | None:
        \"\"\"The record to keep, changed or not; the reason for which it is dropped; or None, to drop it without one.\"\"\"

`record` has `messages` ([{"role", "content"}]), `source`, `rejected`, `pair` and `score`. It is a copy; what the file does
to it counts only where it is returned. Where a record came from stays as it is.
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkit.data.filters import Changed, Rejection, Rule, Verdict, dialogue_filter
from llmkit.data.record import Message, Record
from llmkit.errors import UsageError

_WHOLE = dialogue_filter(min_turns=1, max_chars=sys.maxsize)
_REASON_CHARS = 80  # a reason is counted by, so it is a short text
_NEXT = "see `judge` in the documentation of clean.custom"


def load(path: Path) -> Rule:
    """The rule in the Python file `path`, which is run.

    A kept record that was changed is counted as `custom:<the file's name>`; reasons are `custom:<what judge said>`, and
    `custom:<the file's name>` where it said nothing.

    Raises:
        UsageError: the file cannot be read or run, or has no `judge`; later, `judge` failed or answered something else. It
            names the file, the line, and the record's source.
    """
    judge = getattr(_run(path), "judge", None)
    if not callable(judge):
        raise UsageError(
            "no function `judge` in this file", code="LK0212", where=str(path), next="write `def judge(record): …`"
        )
    name = f"custom:{path.stem}"

    def rule(record: Record) -> Verdict:
        answer = _call(judge, record, path)
        if answer is None:
            return Rejection(name)
        if isinstance(answer, str) and not _is_text(answer):
            raise UsageError(
                "judge answered a reason that is no Unicode text",
                code="LK0212",
                where=f"{path}, for {record.source}",
                next=_NEXT,
            )
        if isinstance(answer, str):
            return Rejection(f"custom:{answer[:_REASON_CHARS]}", answer[_REASON_CHARS:] and answer)
        kept = _record(answer, record, path)
        return record if kept == record else Changed(kept, {name: 1})

    return rule


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"llmkit_custom_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError("no such Python file", code="LK0212", where=str(path), next="mend clean.custom")
    module = importlib.util.module_from_spec(spec)
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a boundary: a user's file may raise anything
        raise _failed(error, path, "cannot run this file") from None
    return module


def _call(judge: Callable[[dict[str, Any]], object], record: Record, path: Path) -> object:
    fields = {**record._asdict(), "messages": [dict(message) for message in record.messages]}
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            return judge(fields)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a boundary: a user's function may raise anything
        raise _failed(error, path, f"judge failed on {record.source or 'a record'}") from None


def _record(answer: object, record: Record, path: Path) -> Record:
    """The record that `answer` is, with the source of `record`."""
    problem = _problem(answer)
    if problem:
        raise UsageError(
            f"judge answered {problem}", code="LK0212", where=f"{path}, for {record.source or 'a record'}", next=_NEXT
        )
    assert isinstance(answer, dict)
    messages = [Message(role=one["role"], content=one["content"]) for one in answer["messages"]]
    kept = Record(messages, record.source, answer.get("rejected"), answer.get("pair", ""), answer.get("score"))
    verdict = _WHOLE(kept)
    if isinstance(verdict, Rejection):
        what = f"judge answered a dialogue that cannot be trained on: {verdict.detail or verdict.reason}"
        raise UsageError(
            what, code="LK0212", where=f"{path}, for {record.source or 'a record'}", next="return a reason to drop it"
        )
    return kept


def _problem(answer: object) -> str:
    """What is wrong with it, or nothing."""
    if not isinstance(answer, dict):
        return f"{type(answer).__name__}, not a dict, a str or None"
    messages = answer.get("messages")
    if not isinstance(messages, list):
        return "a dict without a list `messages`"
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            return "a message that is not {role, content}"
    unknown = answer.keys() - set(Record._fields)
    if unknown:
        return f"a dict with {', '.join(sorted(map(repr, unknown)))}, which no record has"
    score = answer.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float | None):
        return "a score that is not a number"
    texts = [text for message in messages for text in message.values()]
    texts += [answer.get("pair", ""), *([answer["rejected"]] if answer.get("rejected") is not None else [])]
    return "a text that is not a string of Unicode without U+0000" if not all(map(_is_text, texts)) else ""


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and "\0" not in value and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _failed(error: BaseException, path: Path, what: str) -> UsageError:
    """What the user's file raised, with the last line of it that ran."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    where = f"{path}:{line}" if line else str(path)
    return UsageError(f"{what}: {type(error).__name__}: {error}", code="LK0212", where=where, next="mend the file")
