"""What tests expect of an error on stderr."""

import re

from llmkit import catalogue

_TOLD = re.compile(
    r"error (LK\d{4}): [^\n]+(\n    [^\n]*)*(\n  where: [^\n]+(\n    [^\n]*)*)?(\n  next: [^\n]+(\n    [^\n]*)*)?\n"
)


def code_of(err: str) -> str:
    """The code of the one error that `err` is, and nothing else: what, where and next, each on its line."""
    found = _TOLD.fullmatch(err)
    assert found, err
    assert catalogue.find(found[1]), err
    return found[1]
