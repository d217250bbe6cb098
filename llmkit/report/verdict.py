"""What a gate said, for a terminal and for a CI's job summary. Knows the report's "gate"; judges nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.report import terminal
from llmkit.report.gguf import visible
from llmkit.report.markdown import escaped, table
from llmkit.report.values import parts

# The worst first. A word stands beside every colour: it has to be read without.
_ORDER = ("fail", "unknown", "pass")
_STYLES = {"fail": "red", "unknown": "yellow", "pass": "green"}
_MEANING = {
    "pass": "every limit is kept",
    "fail": "a limit is broken",
    "unknown": "nothing failed, but not everything could be judged",
}


def render(gate: Mapping[str, Any], *, width: int, color: bool) -> str:
    """The verdict and every check with its reason, what fails first; lines of at most `width` columns."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold", max_width=max(12, width // 3))
    drawn.add_column(overflow="fold")
    for check in _sorted(gate):
        verdict = str(check.get("verdict"))
        cells = [Text(verdict, style=_STYLES.get(verdict, "")), Text(visible(check.get("model"))), Text(visible(_why(check)))]
        drawn.add_row(*cells)
    console = terminal.console(width=width, color=color)
    with console.capture() as caught:
        console.print(Text(f"gate: {_summary(gate)}", style="bold"))
        console.print(drawn)
    return "\n".join(line.rstrip() for line in caught.get().splitlines())


def markdown(gate: Mapping[str, Any]) -> str:
    """The same as GitHub Markdown."""
    rows = [
        [
            f"**{escaped(check.get('verdict'))}**" if check.get("verdict") != "pass" else "pass",
            *(escaped(check.get(key, "")) for key in ("model", "metric", "kind")),
            escaped(check.get("why", "")),
        ]
        for check in _sorted(gate)
    ]
    return f"**Gate: {escaped(_summary(gate))}**\n\n" + table(["verdict", "model", "metric", "limit", "why"], rows)


def _summary(gate: Mapping[str, Any]) -> str:
    verdict = str(gate.get("verdict"))
    counts = Counter(str(check.get("verdict")) for check in parts(gate, "checks"))
    told = ", ".join(f"{counts[one]} {one}" for one in _ORDER if counts[one])
    return f"{verdict}, {_MEANING.get(verdict, 'no known verdict')} ({told or 'no checks'})"


def _why(check: Mapping[str, Any]) -> str:
    why, metric = str(check.get("why", "")), str(check.get("metric", ""))
    return why if why.startswith(metric) else f"{metric} {why}"


def _sorted(gate: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    known = {verdict: place for place, verdict in enumerate(_ORDER)}
    return sorted(parts(gate, "checks"), key=lambda check: known.get(str(check.get("verdict")), -1))
