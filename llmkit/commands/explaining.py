"""`llmkit explain`: a recipe's key, or an error by its code."""

import re

from llmkit.commands.result import Result


def explain(what: str) -> Result:
    """A paragraph on an error's code, or what a key of the recipe means and takes.

    Raises:
        UsageError: no such code or key; names the nearest.
    """
    if re.fullmatch(r"(?i)LK\d{4}", what):
        return explain_code(what.upper())
    return explain_key(what)


def explain_code(code: str) -> Result:
    """A code's entry in the catalogue."""
    raise NotImplementedError


def explain_key(key: str) -> Result:
    """A key, or a section's keys, from the schema."""
    raise NotImplementedError
