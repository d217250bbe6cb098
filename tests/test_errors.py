"""Errors keep what they say wherever they go, and what llmkit did not foresee becomes one of them."""

import errno
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import errors
from llmkit.errors import DataError, FidelityError, GateError, LlmkitError, MachineError, RecipeError, UsageError

KINDS = [LlmkitError, UsageError, RecipeError, DataError, GateError, MachineError, FidelityError]
TEXT = st.text(max_size=30)


def said(error: LlmkitError) -> tuple[object, ...]:
    return type(error), error.what, error.code, error.where, error.next, error.exit_code, str(error)


@given(st.sampled_from(KINDS), TEXT, TEXT, TEXT, TEXT)
def test_an_error_is_the_same_after_a_pipe(kind: type[LlmkitError], what: str, code: str, where: str, then: str) -> None:
    error = kind(what, code=code, where=where, next=then)
    assert said(pickle.loads(pickle.dumps(error))) == said(error)


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_goes_without_a_code(kind: type[LlmkitError]) -> None:
    with pytest.raises(TypeError, match="code"):
        kind("what")  # type: ignore[call-arg]


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "where"),
    [
        (MemoryError(), "LK0901", ""),
        (OutOfMemoryError("CUDA out of memory"), "LK0901", ""),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), "LK0901", ""),
        (OSError(errno.ENOSPC, "No space left on device", "out.bin"), "LK0902", "out.bin"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out.bin"), "LK0902", "out.bin"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "LK0903", "runs"),
        (OSError("odd"), "LK0903", ""),
        (OSError(), "LK0903", ""),
    ],
)
def test_a_machine_that_fails_is_told_by_its_kind(error: Exception, code: str, where: str) -> None:
    found = errors.told(error)
    assert (type(found), found.code, found.where) == (MachineError, code, where)
    assert found.what
    assert found.next


def test_a_bug_leaves_its_traceback_in_a_file_that_the_error_names() -> None:
    try:
        raise KeyError("missing")
    except KeyError as bug:
        found = errors.told(bug)
    log = Path(found.next.removeprefix("please report it with "))
    try:
        assert (type(found), found.code, found.exit_code) == (LlmkitError, "LK0904", 3)
        assert "KeyError: 'missing'" in log.read_text("utf-8")
    finally:
        log.unlink()
