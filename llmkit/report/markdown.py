"""Text and tables that are safe in GitHub Markdown. Knows the syntax; nothing of what is told.

Names and answers come from models and from strangers' files: none of them can add a row, a link, a heading or markup.
"""

import html
import re
from collections.abc import Iterable, Sequence

from llmkit.report.gguf import HIDDEN

# With the colon no bare address becomes a link, with the at-sign nobody is called.
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$:@]|^-)")
_NUMBERED = re.compile(r"^(\d+)(?=\.(?:\s|$))")


def escaped(value: object, *, most: int | None = None) -> str:
    """`value` on one line, shown as it is; at most `most` characters of it."""
    plain = HIDDEN.sub(" ", str(value)).strip()
    if most is not None and len(plain) > most:
        plain = plain[:most] + "…"
    return html.escape(_NUMBERED.sub(r"\1\\", _MARKS.sub(r"\\\1", plain)), quote=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """A table of cells that are escaped already; the columns `numbers` are set flush right."""
    right = set(numbers)
    rule = ["---:" if column in right else "---" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))
