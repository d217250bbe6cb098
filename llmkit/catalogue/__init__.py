"""A paragraph on each error code. Knows codes and texts; nothing of who raises them.

One TOML file for each area of codes, named in `AREAS`; an entry is `[LK0123]` with a `title` and a `text`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

AREAS: Mapping[str, str] = MappingProxyType(
    {
        "01": "recipes",
        "02": "data",
        "03": "models",
        "04": "training",
        "05": "quantization",
        "06": "gguf",
        "07": "evaluation",
        "08": "serving",
        "09": "machine",
    }
)
"""The file of an area's entries, by the code's first two digits."""


@dataclass(frozen=True)
class Entry:
    """What a code means. `title`: a line; `text`: a paragraph of what it means, its usual causes and what to do."""

    code: str
    title: str
    text: str


def find(code: str) -> Entry | None:
    """The entry of a code (LK0123, in capitals), None where there is none."""
    return _entries().get(code)


def all_entries() -> tuple[Entry, ...]:
    """Every entry, by code."""
    return tuple(_entries().values())


@cache
def _entries() -> Mapping[str, Entry]:
    found = {}
    for area in AREAS.values():
        file = resources.files(__name__) / f"{area}.toml"
        for code, entry in tomllib.loads(file.read_text("utf-8")).items():
            found[code] = Entry(code, entry["title"], " ".join(entry["text"].split()))
    return dict(sorted(found.items()))
