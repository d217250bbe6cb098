"""The dialogues of the package chatterbot-corpus 1.3.3, as raw `messages`. Knows its YAML; nothing of where it is installed.

A conversation is a list of lines, user and assistant in turn. Two corrections keep it honest:

- Two English files hold no dialogues of more than two lines but a question and several answers to it. Each answer
  becomes an exchange of its own; read as a dialogue, every second answer would be put in the user's mouth.
- A conversation of an odd number of lines ends on the user's words. Its last line, which nobody answers, is left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import DataError

FOLDERS = {"zh": "chinese", "zh-Hant": "traditionalchinese", "en": "english"}
_ALTERNATIVES = {("english", "computers.yml"), ("english", "emotion.yml")}
_ROLES = ("user", "assistant")


def read_corpus(data: Path, languages: Sequence[str]) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """Raw records `{"messages": […]}` of `languages`, in a stable order, and what was counted on the way.

    Counts: `conversations` (entries in the files), `dialogues` (records made), `alternatives` (of these, answers beyond
    the first to one question), `unanswered_lines` (left out) and `skipped` (entries that are no list of texts).
    `data` is the package's `data` folder; languages are keys of `FOLDERS`.

    Raises:
        DataError: an unknown language, a missing folder, or a file that is not the YAML expected.
    """
    unknown = [language for language in languages if language not in FOLDERS]
    if unknown or not languages:
        raise DataError(
            f"no such language: {', '.join(unknown) or '(none given)'}", code="LK0214", next=f"choose from {', '.join(FOLDERS)}"
        )
    counts = Counter(dict.fromkeys(("conversations", "dialogues", "alternatives", "unanswered_lines", "skipped"), 0))
    records: list[dict[str, Any]] = []
    for language in dict.fromkeys(languages):
        folder = data / FOLDERS[language]
        paths = sorted(folder.glob("*.yml"))
        if not paths:
            raise DataError(
                "no chatterbot-corpus here", code="LK0305", where=str(folder), next="pip install chatterbot-corpus==1.3.3"
            )
        for path in paths:
            for lines in _dialogues(path, counts):
                records.append({"messages": [{"role": _ROLES[i % 2], "content": line} for i, line in enumerate(lines)]})
    counts["dialogues"] = len(records)
    return records, dict(counts)


def _dialogues(path: Path, counts: Counter[str]) -> Iterator[list[str]]:
    """Lists of an even number of lines; adds to `counts` what it changes."""
    for entry in _conversations(path):
        counts["conversations"] += 1
        if not isinstance(entry, list) or len(entry) < 2 or not all(isinstance(line, str) for line in entry):
            counts["skipped"] += 1
            continue
        lines = [line.strip() for line in entry]
        if (path.parent.name, path.name) in _ALTERNATIVES:
            counts["alternatives"] += len(lines) - 2
            yield from ([lines[0], answer] for answer in lines[1:])
        else:
            counts["unanswered_lines"] += len(lines) % 2
            yield lines[: len(lines) // 2 * 2]


def _conversations(path: Path) -> list[Any]:
    import yaml

    # The base loader leaves every scalar a string: the safe one would turn the answer "Yes" into True and "22" into 22.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        content = yaml.load(path.read_bytes(), loader)  # noqa: S506 (it builds strings, lists and dicts only)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"cannot read this YAML: {error}", code="LK0204", where=str(path)) from None
    entries = content.get("conversations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError("no list named conversations in this YAML", code="LK0204", where=str(path))
    return entries
