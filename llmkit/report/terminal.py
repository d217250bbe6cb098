"""Text as rich draws it for a terminal, caught instead of printed. Knows rich; nothing of what is drawn."""

from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BOUNDLESS = 10_000  # rich cuts off digits in a table too wide for it: a long line is the lesser evil


def console(*, width: int, color: bool) -> "Console":
    """A console that prints nowhere, for `capture`; the same text in every environment, strings taken as they are."""
    from rich.console import Console

    return Console(
        file=StringIO(),
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        highlight=False,
        markup=False,
    )
