"""Two models side by side, for a terminal and for a CI's job summary. Knows what `llmkit compare` found; computes no score."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.report import markdown as md
from llmkit.report import terminal, verdict
from llmkit.report.gguf import visible

UNKNOWN = "–"
SHOWN_SAMPLES = 3  # on a terminal; a summary has them all
EXCERPT = 160  # characters of a text on a terminal
_LONG_EXCERPT = 600
_HEADINGS = ("metric", "before", "after", "difference", "95 % interval", "p", "better", "worse", "same")
_FOOTNOTE = (
    "p: two-sided paired bootstrap over samples, not corrected for the number of metrics; "
    "better, worse, same: samples on which the second model is"
)
_ASSIGNED = {"size_bytes": ("size, MB", 1e6), "peak_memory_bytes": ("memory, MB", 1e6)}


def render(compared: Mapping[str, Any], *, width: int, color: bool) -> str:
    """Every comparison and the gate, if any; texts are folded to `width` columns, the numbers are not."""

    console = terminal.console(width=terminal.BOUNDLESS, color=color)
    with console.capture() as caught:
        for one in compared["comparisons"]:
            _print(console, one, width)
        console.print(_FOOTNOTE, style="dim", width=width)
        if compared.get("gate"):
            console.print()
    parts = ["\n".join(line.rstrip() for line in caught.get().splitlines())]
    if compared.get("gate"):
        parts.append(verdict.render(compared["gate"], width=width, color=color))
    return "\n".join(parts)


def markdown(compared: Mapping[str, Any]) -> str:
    """The same as GitHub Markdown, the gate first."""
    parts = [verdict.markdown(compared["gate"])] if compared.get("gate") else []
    for one in compared["comparisons"]:
        parts.append(f"### {md.escaped(one['model'])} against {md.escaped(one['baseline'])}")
        parts.append(_agreement(one))
        rows = [[md.escaped(cell) for cell in row] for row in _rows(one)]
        parts.append(md.table(_HEADINGS, rows, numbers=range(1, len(_HEADINGS))))
        parts += [f"- {md.escaped(note)}" for note in one["notes"]]
        parts += _details(one)
    return "\n\n".join([*parts, _FOOTNOTE])


def _print(console: Any, one: Mapping[str, Any], width: int) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(f"{visible(one['model'])} against {visible(one['baseline'])}", style="bold")
    console.print(_agreement(one), width=width)
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="left" if heading == _HEADINGS[0] else "right", no_wrap=True)
    for row, style in zip(_rows(one), _styles(one), strict=True):
        drawn.add_row(*(Text(visible(cell)) for cell in row), style=style)
    console.print(drawn)
    for note in one["notes"]:
        console.print(f"note: {visible(note)}", width=width)
    for sample in one["changed"][:SHOWN_SAMPLES]:
        console.print()
        console.print(_moved(one, sample), style="bold")
        for name, text in _texts(sample):
            console.print(f"  {name}: {_excerpt(text, EXCERPT)}", width=width)
    console.print()


def _rows(one: Mapping[str, Any]) -> list[list[str]]:
    scored = [
        [
            name,
            _number(found["before"]),
            _number(found["after"]),
            _signed(found["difference"]),
            f"{_signed(found['low'])} … {_signed(found['high'])}",
            _p(found["p_value"]),
            *(UNKNOWN if found[key] is None else str(found[key]) for key in ("wins", "losses", "ties")),
        ]
        for name, found in one["metrics"].items()
    ]
    return scored + [_plain_row(name, *pair) for name, pair in one["numbers"].items()]


def _plain_row(name: str, before: float | None, after: float | None) -> list[str]:
    title, unit = _ASSIGNED.get(name, (name.replace("_", " "), 1.0))
    pair = [None if value is None else value / unit for value in (before, after)]
    moved = None if None in pair else pair[1] - pair[0]  # type: ignore[operator]
    return [title, *map(_number, pair), _signed(moved), *[""] * 5]


def _styles(one: Mapping[str, Any]) -> list[str | None]:
    """Colour for what is beyond chance at 5 %: green where it is better, red where worse."""
    found: list[str | None] = []
    for change in one["metrics"].values():
        known = change["higher_is_better"] is not None and change["p_value"] is not None
        sure = known and change["p_value"] < 0.05
        better = (change["difference"] or 0) * (1 if change["higher_is_better"] else -1) > 0
        found.append(("green" if better else "red") if sure else None)
    return found + [None] * len(one["numbers"])


def _agreement(one: Mapping[str, Any]) -> str:
    return f"{one['same']} of {one['samples']} answers are the same, text for text"


def _details(one: Mapping[str, Any]) -> list[str]:
    """The samples that moved most, folded away."""
    if not one["changed"]:
        return []
    lines = [f"<details><summary>The {len(one['changed'])} samples that changed most</summary>", ""]
    for sample in one["changed"]:
        lines += [f"- {md.escaped(_moved(one, sample))}"]
        lines += [f"  - {name}: {md.escaped(text, most=_LONG_EXCERPT)}" for name, text in _texts(sample)]
    return ["\n".join([*lines, "", "</details>"])]


def _moved(one: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    scores = f"{_number(sample['score_before'])} → {_number(sample['score_after'])}"
    return f"{visible(_excerpt(sample['id'], EXCERPT))}: {one['ranked_by']} {scores}"


def _texts(sample: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    last = sample["prompt"][-1][1] if sample["prompt"] else ""
    named = [("prompt", last), ("reference", sample["reference"]), ("before", sample["before"]), ("after", sample["after"])]
    return [(name, text) for name, text in named if text or name != "prompt"]


def _excerpt(text: str, most: int) -> str:
    short = " ".join(text[: 4 * most].split())
    return visible(short[:most] + "…" if len(short) > most or len(text) > 4 * most else short)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    # Rounded first: no "-0.00".
    return UNKNOWN if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
