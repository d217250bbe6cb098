"""What can go wrong, as the user should read it. Knows nothing of how it is printed; only `cli.py` prints.

LlmkitError            what, where, next
├── UsageError      2  a wrong option, a step with nothing to read
│   ├── RecipeError 2  a recipe or `--set` that does not fit the schema
│   └── DataError   2  a data file or dataset that cannot be used
├── GateError       1  a measured number fell short of what the recipe demands
├── MachineError    3  the environment failed: memory, disk, a missing extra, a hub out of reach
└── FidelityError   3  a hand-over that failed its proof; nothing was published
"""

import errno
import tempfile
import traceback

# What a full disk is called, also where a quota or a limit on files is what is full.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LlmkitError(Exception):
    """One failure in three lines: what happened, where, and what to do next.

    `where` and `next` may be empty; `exit_code` is the process's exit status; `code` (LK0123) names the kind of trouble, is
    stable from release to release, and has a paragraph in `llmkit.catalogue`, which `llmkit explain CODE` prints.
    """

    exit_code = 3

    def __init__(self, what: str, *, code: str, where: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.where = where
        self.next = next

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.code, self.where, self.next))


class UsageError(LlmkitError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class GateError(LlmkitError):
    exit_code = 1


class MachineError(LlmkitError):
    exit_code = 3


class FidelityError(LlmkitError):
    exit_code = 3


def told(error: Exception) -> LlmkitError:
    """Any other exception as one of ours: out of memory, a full or unreadable disk, or a bug whose traceback goes to a file."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return MachineError("out of memory", code="LK0901", next="free some, or use a smaller model or batch")
    if isinstance(error, OSError):
        what, where = error.strerror or text or type(error).__name__, str(error.filename or "")
        if error.errno in _FULL:
            return MachineError(what, code="LK0902", where=where, next="free some of the disk, and run again")
        return MachineError(what, code="LK0903", where=where, next="mend the path, its permissions or the disk")
    with tempfile.NamedTemporaryFile("w", prefix="llmkit-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    what = f"llmkit has a bug: {type(error).__name__}: {text}"
    return LlmkitError(what, code="LK0904", next=f"please report it with {log.name}")


def _rebuild(kind: type[LlmkitError], what: str, code: str, where: str, next: str) -> LlmkitError:
    return kind(what, code=code, where=where, next=next)
