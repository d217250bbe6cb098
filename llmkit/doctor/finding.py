"""What the doctor says of one thing. Knows no machine."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """`area`: what was looked at; `what`: what was seen; `means`: what follows; `mend`: the command or step that mends it.

    `error`: something that llmkit needs is broken; `warning`: something works badly or not at all that many need; `note`:
    something optional is missing, or worth knowing.
    """

    level: Level
    area: str
    what: str
    means: str = ""
    mend: str = ""
