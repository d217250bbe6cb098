"""One evaluation report as a table: for a terminal or as Markdown. Knows the report's keys; computes no score."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.report import html, terminal, values

RETENTION_FLOOR = 0.8
BASE = "base"  # the model before the fine-tune, which has none to lose
UNKNOWN = "–"
_GAP = "  "
_MARKUP = re.compile(r"[\\`*\[\]|<>&]")  # not the underscore: within a word it marks nothing on GitHub


@dataclass(frozen=True)
class Column:
    """A heading, how a model's entry is written in it, and how readily it goes where space is short (0: never).

    `metric` names the one that the column shows, if it is one that may have an interval.
    """

    heading: str
    cell: Callable[[Mapping[str, Any]], str]
    dispensable: int = 0
    metric: str = ""

    def wide(self, model: Mapping[str, Any]) -> str:
        """The cell with half the width of its 95 % interval: 17.8±1.9."""
        ends = values.interval(model, self.metric)
        return f"{self.cell(model)}±{(ends[1] - ends[0]) / 2:.1f}" if ends else self.cell(model)


def retention(kl: float | None, base_kl: float | None) -> float | None:
    """The share of a fine-tune that is left: 1 − `kl` / `base_kl`, KLs of a variant and of the base from the tuned model.

    None where either is unknown or the fine-tune changed nothing.
    """
    return None if kl is None or not base_kl else 1.0 - kl / base_kl


def lost_fine_tune(name: str, model: Mapping[str, Any]) -> bool:
    """Whether the variant `name` kept less of the fine-tune than `RETENTION_FLOOR` (unknown counts as kept)."""
    retention = values.number(model.get("retention"))
    # Not `<`: a NaN proves nothing, so it is marked as well.
    return name != BASE and retention is not None and not retention >= RETENTION_FLOOR


def render(report: Mapping[str, Any], *, width: int, color: bool) -> str:
    """The report as a table of at most `width` columns, with footnotes; 110 hold every column.

    `report["models"]`: name → {"metrics": {bleu, rouge1, rouge2, rougeL, chrf}, "intervals": {metric: [low, high]},
    "perplexity", "size_bytes", "tokens_per_second", "peak_memory_bytes", "retention", "kl", "failed", "n_samples",
    "runtime"}; what is absent or None shows as a dash. On a narrower terminal the least important columns go, and a footnote
    names them; intervals are shown where there is room to spare.
    """
    models = values.rows(report)
    columns, dropped = _fit(columns_of(models), models, width)
    cells, wide = _cells(columns, models, width)
    notes = _notes(models, wide=wide)
    if dropped:
        notes.append(f"left out for want of width: {', '.join(column.heading for column in dropped)}")
    return _draw(columns, cells, models, notes, width=width, color=color)


def markdown(report: Mapping[str, Any]) -> str:
    """The same table, every column and interval in it, as GitHub Markdown with the footnotes below."""
    models = values.rows(report)
    columns = columns_of(models)
    rows = [["model", *(column.heading for column in columns)], ["---", *("---:" for _ in columns)]]
    rows += [[label(name, model), *(column.wide(model) for column in columns)] for name, model in models.items()]
    lines = ["| " + " | ".join(_MARKUP.sub(r"\\\g<0>", cell) for cell in row) + " |" for row in rows]
    wide = any(column.wide(model) != column.cell(model) for column in columns for model in models.values())
    notes = [f"- {note}" for note in _notes(models, wide=wide)]
    return "\n".join([*lines, "", *notes] if notes else lines)


def columns_of(models: Mapping[str, Any]) -> list[Column]:
    """Those with anything to say; one number of samples for all is a footnote instead."""
    counts = {values.number(model.get("n_samples")) for model in models.values()}
    return [
        column
        for column in _COLUMNS
        if (column.heading != "n" or len(counts) > 1) and any(column.cell(model) != UNKNOWN for model in models.values())
    ]


def label(name: str, model: Mapping[str, Any]) -> str:
    """The name in one line, with a `!` where the fine-tune is lost."""
    shown = html.line(name)
    return f"{shown} !" if lost_fine_tune(name, model) else shown


def size(value: object) -> str:
    """Megabytes below ten gigabytes, so that the variants of a small model compare at a glance."""
    found = values.number(value)
    if found is None:
        return UNKNOWN
    return f"{found / 1e6:.0f} MB" if not found >= 1e10 else f"{found / 1e9:.1f} GB"


def spelled(value: object, digits: int) -> str:
    """A number with so many decimals, or a dash."""
    found = values.number(value)
    return UNKNOWN if found is None else f"{found:.{digits}f}"


def _metric(heading: str, name: str, dispensable: int = 0) -> Column:
    return Column(heading, lambda model: spelled(values.part(model, "metrics").get(name), 1), dispensable, name)


# From left to right; of the dispensable ones the highest number goes first.
_COLUMNS = (
    _metric("BLEU", "bleu"),
    _metric("R-1", "rouge1", 2),
    _metric("R-2", "rouge2", 3),
    _metric("R-L", "rougeL"),
    _metric("chrF", "chrf", 4),
    Column("PPL", lambda model: spelled(model.get("perplexity"), 2), 5),
    Column("retention", lambda model: spelled(model.get("retention"), 3)),
    Column("KL", lambda model: spelled(model.get("kl"), 3), 6),
    Column("size", lambda model: size(model.get("size_bytes"))),
    Column("tok/s", lambda model: spelled(model.get("tokens_per_second"), 1), 1),
    Column("memory", lambda model: size(model.get("peak_memory_bytes")), 7),
    Column("n", lambda model: spelled(model.get("n_samples"), 0), 8),
    Column("failed", lambda model: spelled(model.get("failed") or None, 0)),
    Column("runtime", lambda model: html.line(model.get("runtime") or UNKNOWN), 9),
)


def _notes(models: Mapping[str, Any], *, wide: bool) -> list[str]:
    notes = [
        f"! {label(name, {})} lost the fine-tune: retention {spelled(model['retention'], 3)}, the floor is {RETENTION_FLOOR}"
        for name, model in models.items()
        if lost_fine_tune(name, model)
    ]
    counts = {values.number(model.get("n_samples")) for model in models.values()}
    if len(counts) == 1 and None not in counts:
        notes.append(f"{spelled(counts.pop(), 0)} samples a model")
    return [*notes, "± half of the 95 % bootstrap interval"] if wide else notes


def _fit(columns: list[Column], models: Mapping[str, Any], width: int) -> tuple[list[Column], list[Column]]:
    """Split `columns` into those that fit in `width` and those that do not."""
    room = _room(models, width)
    needs = {column.heading: _needs(column.heading, map(column.cell, models.values())) for column in columns}
    kept, dropped = list(columns), []
    for column in sorted((column for column in columns if column.dispensable), key=lambda column: -column.dispensable):
        if sum(needs[one.heading] for one in kept) <= room:
            break
        kept.remove(column)
        dropped.append(column)
    return kept, dropped


def _cells(columns: list[Column], models: Mapping[str, Any], width: int) -> tuple[list[list[str]], bool]:
    """The cells of each column, with intervals in the important ones as far as `width` goes; whether any has."""
    cells = {column.heading: [column.cell(model) for model in models.values()] for column in columns}
    room = _room(models, width) - sum(_needs(heading, texts) for heading, texts in cells.items())
    wide = False
    scores = [column for column in columns if column.metric]
    for column in sorted(scores, key=lambda column: (column.metric != "rougeL", column.dispensable)):
        texts = [column.wide(model) for model in models.values()]
        more = _needs(column.heading, texts) - _needs(column.heading, cells[column.heading])
        if more <= room and texts != cells[column.heading]:
            cells[column.heading], room, wide = texts, room - more, True
    return [cells[column.heading] for column in columns], wide


def _room(models: Mapping[str, Any], width: int) -> int:
    """What the names leave of `width`."""
    from rich.cells import cell_len

    return width - max(map(cell_len, ["model", *(label(name, model) for name, model in models.items())]))


def _needs(heading: str, texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return len(_GAP) + max(map(cell_len, [heading, *texts]))


def _draw(
    columns: list[Column],
    cells: list[list[str]],
    models: Mapping[str, Any],
    notes: list[str],
    *,
    width: int,
    color: bool,
) -> str:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, len(_GAP), 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for number, (name, model) in enumerate(models.items()):
        # Text, not strings: a name in square brackets is no markup.
        row = [Text(label(name, model)), *(Text(texts[number]) for texts in cells)]
        table.add_row(*row, style="red" if lost_fine_tune(name, model) else None)
    console = terminal.console(width=terminal.BOUNDLESS, color=color)
    with console.capture() as drawn:
        console.print(table)
        for note in notes:
            console.print(Text(note, style="red" if note.startswith("!") else "dim"), width=width)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())
