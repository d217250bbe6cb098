"""The doctor's findings as text. Knows words and columns; judges nothing."""

from collections.abc import Mapping, Sequence

from llmkit.report.gguf import HIDDEN


def render(findings: Sequence[Mapping[str, str]], *, seconds: float) -> str:
    """What is fine in a line each, then what is not, worst first, each with what it means and what mends it.

    `findings`: level (ok, note, warning, error), area, what, means, mend.
    """
    order = {"ok": 0, "note": 1, "warning": 2, "error": 3}
    width = max((len(one["area"]) for one in findings), default=0)
    lines = []
    for one in sorted(findings, key=lambda one: order[one["level"]]):  # the worst last, where the eye is
        lines.append(f"{one['level']:<8}{one['area']:<{width}}  {_shown(one['what'])}")
        indent = " " * (8 + width + 2)
        lines += [f"{indent}{_shown(one['means'])}"] if one["means"] else []
        lines += [f"{indent}→ {_shown(one['mend'])}"] if one["mend"] else []
    counts = {level: sum(one["level"] == level for one in findings) for level in order}
    told = [
        f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("error", "warning", "note") if counts[level]
    ]
    return "\n".join([*lines, f"{', '.join(told) or 'nothing to mend'}; looked for {seconds:.1f} s"])


def _shown(text: str) -> str:
    return HIDDEN.sub(" ", text)
