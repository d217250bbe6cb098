"""An error as it is printed: lines for a person, values for a machine. Knows nothing of streams or exit codes.

What an error quotes comes from files and servers that anyone may have written, so nothing of it reaches a terminal as a
command: a character that does not print (escape sequences, carriage returns, marks that turn text around) is spelled out.
"""

import unicodedata

from llmkit.errors import LlmkitError

MAX_CHARS = 8_000  # of a field: a library may quote a whole model in its message


def lines(error: LlmkitError) -> str:
    """`error CODE: WHAT`, below it `where:` if that is known, and `next:`; further lines are indented."""
    parts = [f"error {error.code}: {_indented(error.what)}"]
    for label, text in (("where", error.where), ("next", _next(error))):
        if text:
            parts.append(f"  {label}: {_indented(text)}")
    return "\n".join(parts)


def fields(error: LlmkitError) -> dict[str, str]:
    """code, what, where and next, as they are."""
    return {"code": error.code, "what": error.what, "where": error.where, "next": _next(error)}


def harmless(text: str) -> str:
    """Text that a terminal shows and does not obey: what does not print is written as an escape, such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(one if _prints(one) else one.encode("unicode_escape").decode("ascii") for one in text)


def _next(error: LlmkitError) -> str:
    return error.next or f"`llmkit explain {error.code}` says more"


def _prints(one: str) -> bool:
    # Python holds that wide and hard spaces do not print; in Chinese texts they are common.
    return one in "\n\t" or one.isprintable() or unicodedata.category(one) == "Zs"


def _indented(text: str) -> str:
    cut = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"
    return harmless(cut).strip().replace("\n", "\n    ")
