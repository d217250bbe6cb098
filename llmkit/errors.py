"""What can go wrong, as the user should read it. Knows nothing of how it is printed; only `cli.py` prints.

LlmkitError            what, where, next
├── UsageError      2  a wrong option, a step with nothing to read
│   ├── RecipeError 2  a recipe or `--set` that does not fit the schema
│   └── DataError   2  a data file or dataset that cannot be used
├── GateError       1  a measured number fell short of what the recipe demands
├── MachineError    3  the environment failed: memory, disk, a missing extra, a hub out of reach
└── FidelityError   3  a hand-over that failed its proof; nothing was published
"""

import tempfile
import traceback


class LlmkitError(Exception):
    """One failure in three lines: what happened, where, and what to do next.

    `where` and `next` may be empty; `exit_code` is the process's exit status; `code` (LK0123) is stable from release to
    release, and `llmkit explain CODE` has a paragraph on it.
    """

    exit_code = 3

    def __init__(self, what: str, *, code: str = "", where: str = "", next: str = "") -> None:
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
        return MachineError("out of memory", next="free some, or use a smaller model or batch")
    if isinstance(error, OSError):
        return MachineError(
            error.strerror or text, where=str(error.filename or ""), next="free the disk or mend the permissions"
        )
    with tempfile.NamedTemporaryFile("w", prefix="llmkit-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    return LlmkitError(f"llmkit has a bug: {type(error).__name__}: {text}", next=f"please report it with {log.name}")


def _rebuild(kind: type[LlmkitError], what: str, code: str, where: str, next: str) -> LlmkitError:
    return kind(what, code=code, where=where, next=next)
