"""A plan as text: the chain as a tree, what each step needs, what fits where. Knows plain data; computes nothing."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_NARROWEST = 40  # characters that a note gets beside its step
_MINUTE, _HOUR = 90, 5400  # seconds up to which the smaller unit is told
Plan = Mapping[str, Any]


def render(plan: Plan, *, width: int) -> str:
    """`plan`: as the command gives it under --json; `width`: columns of the terminal."""
    lines = _wrapped(f"{plan['recipe']}   on {_machine(plan['machine'])}", width, indent="  ")
    steps = plan["steps"]
    stem = max(len(_stem(steps, step) + step["name"]) for step in steps)
    for step in steps:
        label = f"{_stem(steps, step)}{step['name']}"
        lines.append(f"{label:<{stem}}  {'fresh' if step['fresh'] else 'runs: ' + step['reason']}")
        for line in _need(step):
            lines += [f"{'':<{stem}}  {part}" for part in _wrapped(line, max(_NARROWEST, width - stem - 2), indent="  ")]
    rest = [f"to be fetched first: {_fetched(one)}" for one in plan["to_fetch"]]
    rest += [f"note: {one}" for one in plan["notes"]]
    rest += [_total(plan["total"])] if plan.get("total") else []
    return "\n".join([*lines, *(part for one in rest for part in _wrapped(one, width, indent="  "))])


def _wrapped(text: str, width: int, *, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _fetched(one: Plan) -> str:
    return f"{one['name']} ({gigabytes(one['bytes'])})" if one["bytes"] else str(one["name"])


def render_fits(found: Plan, *, width: int) -> str:
    """Two tables: to speak, to train."""
    devices = [one["name"] for one in found["devices"]]
    context = found["context"]
    lines = [f"{found['model']}: {found['parameters'] / 1e9:.2f} B parameters", f"from {found['from']}", ""]
    lines.append(f"To speak, one conversation of {context} tokens: memory on each device, and where it fits")
    head = ["precision", "weights", "KV cache", "in all", *devices]
    rows = [
        [
            one["precision"],
            *map(gigabytes, (one["parts"]["weights"], one["parts"]["KV cache"], one["total"])),
            *_cells(one, devices),
        ]
        for one in found["inference"]
    ]
    lines += [*_table(head, rows), ""]
    lines.append(f"To train with LoRA of rank 16 or whole, one record (orpo: one pair) of {context} tokens at once")
    head = ["objective", "method", "loading", "training", *devices]
    rows = [[one["objective"], one["method"], *_phases(one), *_cells(one, devices)] for one in found["training"]]
    lines += _table(head, rows)
    notes = [part for one in found["notes"] for part in _wrapped(f"note: {one}", width, indent="  ")]
    return "\n".join([*lines, *notes])


def gigabytes(size: int) -> str:
    if size < 10e6:
        return f"{size / 1e6:.1f} MB"
    digits = 0 if size >= 100e9 else 1 if size >= 1e9 else 2
    return f"{size / 1e9:.{digits}f} GB"


def seconds(low: float, high: float) -> str:
    """A range in one unit, to a digit or two: it is a guess."""
    unit, name = (1, "s") if high < _MINUTE else (60, "min") if high < _HOUR else (3600, "h")
    first, last = (f"{value / unit:.1g}" if value / unit < 9.5 else f"{value / unit:.0f}" for value in (low, high))
    return f"{first} {name}" if first == last else f"{first} to {last} {name}"


def _machine(machine: Plan) -> str:
    limit = " (a container's limit)" if machine["limited"] else ""
    parts = [
        f"{machine['processors']} processors",
        f"{gigabytes(machine['memory_free'])} of {gigabytes(machine['memory'])} memory free{limit}",
    ]
    parts += [f"{one['name']} with {gigabytes(one['free'])} of {gigabytes(one['total'])} free" for one in machine["gpus"]]
    parts.append(f"{gigabytes(machine['disk_free'])} of disk free")
    return ", ".join(parts)


def _stem(steps: Sequence[Plan], step: Plan) -> str:
    parents = {one["name"]: one["after"] for one in steps}
    depth, name = 0, step["after"]
    while name:
        depth, name = depth + 1, parents[name]
    return "  " * (depth - 1) + "└ " if depth else ""


def _need(step: Plan) -> list[str]:
    need = step["need"]
    if step["fresh"] or not need:
        return []
    memory, disk, spent = need["memory"], need["disk"], need["seconds"]
    largest = max(memory["parts"], key=memory["parts"].get)
    where = "GPU memory" if need["on_gpu"] else "memory"
    told = [f"{gigabytes(memory['total'])} {where} ({largest} {gigabytes(memory['parts'][largest])})"]
    scratch = f", {gigabytes(disk['scratch'])} more for a while" if disk["scratch"] > 0.01e9 else ""
    told.append(f"writes {gigabytes(disk['writes'])}{scratch}")
    if spent:
        told.append(f"{seconds(spent['low'], spent['high'])} ({spent['how']})")
    lines = ["; ".join(told), *need["notes"]]
    advice = step["advice"]
    if advice:
        remedy = (
            f"it fits with {advice['options']} ({gigabytes(advice['memory'])})" if advice["options"] else advice["otherwise"]
        )
        lines += [f"DOES NOT FIT: too little {advice['lacks']}", remedy]
    return lines


def _total(total: Plan) -> str:
    spent = total["seconds"]
    time = f"{seconds(spent['low'], spent['high'])}, " if spent else ""
    unknown = f" (without {', '.join(total['untimed'])})" if total["untimed"] and spent else ""
    return f"in all: {time}{gigabytes(total['memory'])} memory at most, {gigabytes(total['disk'])} written{unknown}"


def _phases(row: Plan) -> list[str]:
    return [gigabytes(row["phases"][name]) for name in ("loading", "training")]


def _cells(row: Plan, devices: Sequence[str]) -> list[str]:
    return ["yes" if row["fits"][name] else "-" for name in devices]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Text columns to the left, numbers and verdicts to the right; a head of two words stands in two lines."""
    upper, lower = ([one.rpartition(" ")[part] for one in head] for part in (0, 2))
    words = [all(not row[index][:1].isdigit() for row in rows) and index < 2 for index in range(len(head))]
    rows = [upper, lower, *rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width) for cell, width, word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in rows
    ]
