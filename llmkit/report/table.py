"""One evaluation report as a table: for a terminal or as Markdown. Knows the report's keys; computes no score."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

RETENTION_FLOOR = 0.8
BASE = "base"  # the model before the fine-tune, which has none to lose
UNKNOWN = "–"
_GAP = "  "
_BOUNDLESS = 10_000  # rich cuts off digits in a table too wide for it; `_fit` drops whole columns instead


@dataclass(frozen=True)
class Column:
    """A heading, how a model's entry is written in it, and how readily it goes where space is short (0: never)."""

    heading: str
    cell: Callable[[Mapping[str, Any]], str]
    dispensable: int = 0


def retention(kl: float | None, base_kl: float | None) -> float | None:
    """The share of a fine-tune that is left: 1 − `kl` / `base_kl`, KLs of a variant and of the base from the tuned model.

    None where either is unknown or the fine-tune changed nothing.
    """
    return None if kl is None or not base_kl else 1.0 - kl / base_kl


def lost_fine_tune(name: str, model: Mapping[str, Any]) -> bool:
    """Whether the variant `name` kept less of the fine-tune than `RETENTION_FLOOR` (unknown counts as kept)."""
    retention = model.get("retention")
    # Not `<`: a NaN proves nothing, so it is marked as well.
    return name != BASE and retention is not None and not retention >= RETENTION_FLOOR


def render(report: Mapping[str, Any], *, width: int, color: bool) -> str:
    """The report as a table of at most `width` columns, with footnotes; 100 hold every column.

    `report["models"]`: name → {"metrics": {bleu, rouge1, rouge2, rougeL, chrf}, "size_bytes", "tokens_per_second",
    "peak_memory_bytes", "retention", "kl", "n_samples", "runtime"}; what is absent or None shows as a dash. On a
    narrower terminal the least important columns go, and a footnote names them.
    """
    models: Mapping[str, Any] = report["models"]
    columns, dropped = _fit(_columns(models), models, width)
    notes = _notes(models)
    if dropped:
        notes.append(f"left out for want of width: {', '.join(column.heading for column in dropped)}")
    return _draw(columns, models, notes, width=width, color=color)


def markdown(report: Mapping[str, Any]) -> str:
    """The same table, every column in it, as GitHub Markdown with the footnotes below."""
    models: Mapping[str, Any] = report["models"]
    columns = _columns(models)
    rows = [["model", *(column.heading for column in columns)], ["---", *("---:" for _ in columns)]]
    rows += [[_label(name, model), *(column.cell(model) for column in columns)] for name, model in models.items()]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    notes = [f"- {note}" for note in _notes(models)]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _metric(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda model: _number(model.get("metrics", {}).get(name), 1)


# From left to right; of the dispensable ones the highest number goes first.
_COLUMNS = (
    Column("BLEU", _metric("bleu")),
    Column("R-1", _metric("rouge1"), 2),
    Column("R-2", _metric("rouge2"), 3),
    Column("R-L", _metric("rougeL")),
    Column("chrF", _metric("chrf"), 4),
    Column("retention", lambda model: _number(model.get("retention"), 3)),
    Column("KL", lambda model: _number(model.get("kl"), 3), 5),
    Column("size", lambda model: _bytes(model.get("size_bytes"))),
    Column("tok/s", lambda model: _number(model.get("tokens_per_second"), 1), 1),
    Column("memory", lambda model: _bytes(model.get("peak_memory_bytes")), 6),
    Column("n", lambda model: _number(model.get("n_samples"), 0), 7),
    Column("runtime", lambda model: str(model.get("runtime") or UNKNOWN), 8),
)


def _columns(models: Mapping[str, Any]) -> list[Column]:
    """Those with anything to say; one number of samples for all is a footnote instead."""
    counts = {model.get("n_samples") for model in models.values()}
    return [
        column
        for column in _COLUMNS
        if (column.heading != "n" or len(counts) > 1) and any(column.cell(model) != UNKNOWN for model in models.values())
    ]


def _notes(models: Mapping[str, Any]) -> list[str]:
    notes = [
        f"! {name} lost the fine-tune: retention {model['retention']:.3f}, the floor is {RETENTION_FLOOR}"
        for name, model in models.items()
        if lost_fine_tune(name, model)
    ]
    counts = {model.get("n_samples") for model in models.values()}
    if len(counts) == 1 and None not in counts:
        notes.append(f"{counts.pop()} samples a model")
    return notes


def _fit(columns: list[Column], models: Mapping[str, Any], width: int) -> tuple[list[Column], list[Column]]:
    """Split `columns` into those that fit in `width` and those that do not."""
    from rich.cells import cell_len

    labels = [_label(name, model) for name, model in models.items()]
    room = width - max(map(cell_len, ["model", *labels]))
    needs = {
        column.heading: len(_GAP) + max(cell_len(text) for text in [column.heading, *map(column.cell, models.values())])
        for column in columns
    }
    kept, dropped = list(columns), []
    for column in sorted((column for column in columns if column.dispensable), key=lambda column: -column.dispensable):
        if sum(needs[one.heading] for one in kept) <= room:
            break
        kept.remove(column)
        dropped.append(column)
    return kept, dropped


def _draw(columns: list[Column], models: Mapping[str, Any], notes: list[str], *, width: int, color: bool) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, len(_GAP), 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for name, model in models.items():
        # Text, not strings: a name in square brackets is no markup.
        cells = [Text(_label(name, model)), *(Text(column.cell(model)) for column in columns)]
        table.add_row(*cells, style="red" if lost_fine_tune(name, model) else None)
    console = Console(
        file=StringIO(),
        width=_BOUNDLESS,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        highlight=False,
    )
    with console.capture() as drawn:
        console.print(table)
        for note in notes:
            console.print(Text(note, style="red" if note.startswith("!") else "dim"), width=width)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _label(name: str, model: Mapping[str, Any]) -> str:
    return f"{name} !" if lost_fine_tune(name, model) else name


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _bytes(value: float | None) -> str:
    """Megabytes below ten gigabytes, so that the variants of a small model compare at a glance."""
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:.0f} MB" if value < 1e10 else f"{value / 1e9:.1f} GB"
