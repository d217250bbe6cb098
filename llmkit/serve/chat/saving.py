"""Dialogues kept as `llmkit clean` reads them: JSON lines `{"messages": […]}`. Knows the file; nothing of models."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from llmkit.errors import DataError
from llmkit.serve.speaker import Message

_LONGEST_LINE = 1 << 24  # bytes of a file's last line that are read to see what it is


def save(place: str, dialogues: Sequence[Sequence[Message]]) -> bool:
    """Write one line for each dialogue at the end of a file of dialogues, or to a new file; tells whether it was new.

    Raises:
        DataError: the file is there and holds something else, or it cannot be written: what was said is not lost by that.
    """
    try:
        path = Path(place).expanduser()
        new = not path.exists()
        if not new and not (path.is_file() and _holds_dialogues(path)):
            raise DataError(
                "this is no file of dialogues, and it stays as it is", code="LK0872", where=place, next="name another file"
            )
        lines = "".join(json.dumps({"messages": list(one)}, ensure_ascii=False) + "\n" for one in dialogues)
        with path.open("ab") as stream:
            stream.write(lines.encode())
    except (OSError, RuntimeError, ValueError) as error:  # no such home; a name that no file can have
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot save: {why}", code="LK0872", where=place, next="name another file") from None
    return new


def _holds_dialogues(path: Path) -> bool:
    """Whether a file is empty, or ends in a whole line that is a dialogue."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _LONGEST_LINE))
        tail = stream.read(_LONGEST_LINE)
    if not tail:
        return True
    if not tail.endswith(b"\n"):
        return False
    try:
        last = json.loads(tail[:-1].rpartition(b"\n")[2])
    except (ValueError, RecursionError):
        return False
    return isinstance(last, dict) and isinstance(last.get("messages"), list)
