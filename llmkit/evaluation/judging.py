"""Holds an evaluation's gate against its report. Knows reports and limits; the rule itself is in metrics/gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.evaluation.settings import Gate

if TYPE_CHECKING:
    from llmkit.metrics.gate import Check, Entry, Limits, Verdict
    from llmkit.metrics.reports import Report
    from llmkit.metrics.tally import Tally

Test = Callable[[str], bool]
# What a gate can ask of. Those of the first line come from the texts, sample by sample, so that a drop can be told from noise.
SCORES = [
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "chrf",
    "exact_match",
    "f1",
    "distinct1",
    "distinct2",
    "repetition",
    "length_ratio",
    "refusals",
    "sensitive",
]
NUMBERS = [
    "perplexity",
    "kl",
    "mean",
    "median",
    "p99",
    "same_top",
    "rms_dp",
    "retention",
    "stopped",
    "failed",
    "peak_memory_bytes",
    "log_probability",
]


# How far the reference is from itself, which nobody measures.
_FROM_ITSELF = {"mean": 0.0, "median": 0.0, "p99": 0.0, "rms_dp": 0.0, "same_top": 1.0}


def check(gate: Gate, rows: Sequence[str] | None, *, sensitive: bool, further: Sequence[str] = ()) -> None:
    """Refuse a gate that has no limits, or names what is not measured.

    Args:
        gate: the limits.
        rows: the report's, where they are known already.
        sensitive: there are lists of sensitive words.
        further: what else floors and ceilings may name, such as pass@1; with a dot at its end, the beginning of names.

    Raises:
        UsageError: says what, and what there is.
    """
    _limits(gate)
    scores = [name for name in SCORES if sensitive or name != "sensitive"]
    for key, names, known in (
        ("max_drop", gate.max_drop, [name for name in scores if name != "length_ratio"]),  # which has no better side
        ("min", gate.min, [*scores, *NUMBERS, *further]),
        ("max", gate.max, [*scores, *NUMBERS, *further]),
    ):
        for name in names:
            if name not in known and not any(one.endswith(".") and name.startswith(one) for one in known):
                near = get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UsageError(
                    f"eval.gate.{key} names {name!r}, which is no metric",
                    code="LK0706",
                    next=f"{hint}choose from {', '.join(known)}",
                )
    named = [*(gate.variants or ()), *([gate.baseline] if gate.baseline and not is_folder(gate.baseline) else [])]
    for name in named:
        if rows is not None and name not in rows:
            also = "; or name the folder of an earlier report" if name == gate.baseline else ""
            raise UsageError(
                f"eval.gate names {name!r}, which is not measured", code="LK0706", next=f"choose from {', '.join(rows)}{also}"
            )
    if rows is not None and not judged(gate, rows):
        raise UsageError(
            "eval.gate judges nothing: base and the baseline are all there is",
            code="LK0706",
            next="name rows in eval.gate.variants",
        )


def judged(gate: Gate, rows: Sequence[str]) -> list[str]:
    """The rows that are held to the limits."""
    from llmkit.metrics import gate as rule

    if gate.variants:
        return list(gate.variants)
    return rule.judged(rows, baseline=None if gate.baseline and is_folder(gate.baseline) else gate.baseline)


def is_folder(baseline: str) -> bool:
    """Whether a gate's baseline is an earlier report's folder, and no row of this one."""
    return "/" in baseline or (Path(baseline) / "report.json").is_file()


def judge(
    gate: Gate,
    folder: Path,
    earlier: Path | None,
    changed: Sequence[str],
    *,
    is_sensitive: Test | None = None,
    further: Mapping[str, Mapping[str, Any]] | None = None,
) -> "Verdict":
    """The verdict on the report in `folder`.

    Args:
        gate: the limits.
        folder: holds report.json and samples.jsonl.
        earlier: the folder of the report that drops are measured from; None: the baseline is a row of this one, or none.
        changed: variants whose files are not those that were published.
        is_sensitive: whether an answer holds a listed word; None: there are no lists.
        further: by row, what else was measured: pass@1, cmmlu.acc.

    Raises:
        UsageError: a row or a number that is not there.
        DataError: an earlier report that cannot be read.
    """
    from llmkit.metrics import gate as rule
    from llmkit.metrics import reports

    report = reports.read(folder)
    also = further or {}
    names_of_more = sorted({name for numbers in also.values() for name in numbers})
    check(gate, list(report.rows), sensitive=is_sensitive is not None, further=names_of_more)
    names = judged(gate, list(report.rows))
    before = reports.read(earlier) if earlier else report
    against = {name: _baseline(gate, report, before, name) for name in names} if gate.baseline else {}
    why = reports.obstacles(before, report) if earlier else []
    if why:
        return rule.Verdict((_incomparable(why),))
    entries = _entries(report, before, names, against, is_sensitive)
    entries = [replace(one, row={**one.row, **also.get(one.model, {})}) for one in entries]
    verdict = rule.judge(_limits(gate), entries)
    mute = [name for name in names if report.rows[name].get("failed") == len(report.samples)]
    more = [*map(_mute, mute), *(_changed(name) for name in names if name in changed)]
    return rule.Verdict((*verdict.checks, *more))


def _limits(gate: Gate) -> "Limits":
    from llmkit.metrics.gate import Limits

    return Limits(gate.max_drop, gate.min, gate.max, gate.max_bytes, gate.min_tokens_per_second, gate.min_retention)


def _baseline(gate: Gate, report: "Report", before: "Report", name: str) -> str:
    """The row that a variant is held against: of an earlier report the one of its name, else its reference."""
    if before is report:
        return str(gate.baseline)
    return name if name in before.rows else before.reference or next(iter(before.rows))


def _entries(
    report: "Report", before: "Report", names: Sequence[str], against: Mapping[str, str], is_sensitive: Test | None
) -> "list[Entry]":
    from llmkit.metrics.gate import Entry

    scored: dict[tuple[bool, str], Mapping[str, Tally]] = {}
    texts: dict[tuple[bool, str], list[str]] = {}
    for source, row in dict.fromkeys([(report, name) for name in names] + [(before, row) for row in against.values()]):
        place = (source is report, row)
        samples = [source.by_key[key] for key in report.by_key]
        texts[place] = [one.answers[row] for one in samples]
        scored[place] = tallies(texts[place], [one.reference for one in samples], is_sensitive=is_sensitive)
    found = []
    for name in names:
        mine, theirs = (True, name), (before is report, against.get(name, ""))
        # Two answers that failed alike say nothing of each other.
        same = theirs in texts and texts[mine] == texts[theirs] and not report.rows[name].get("failed")
        numbers = report.rows[name]
        if name == report.reference:
            numbers = {**numbers, "kl": 0.0, "divergence": _FROM_ITSELF}
        found.append(Entry(name, numbers, scored[mine], scored.get(theirs, {}), identical=same))
    return found


def tallies(answers: Sequence[str], references: Sequence[str], *, is_sensitive: Test | None = None) -> "Mapping[str, Tally]":
    """The scores of a list of answers that a drop can be measured of."""
    from llmkit.data import quality
    from llmkit.metrics import text

    return text.score(answers, references, is_refusal=quality.is_refusal, is_sensitive=is_sensitive).tallies


def _incomparable(why: Sequence[str]) -> "Check":
    from llmkit.metrics import gate as rule

    return rule.Check("all", "all", "max_drop", 0.0, rule.UNKNOWN, f"the baseline cannot be compared: {'; '.join(why)}")


def _mute(name: str) -> "Check":
    from llmkit.metrics import gate as rule

    return rule.Check(name, "failed", "answered", 0.0, rule.FAIL, "it answered no prompt at all")


def _changed(name: str) -> "Check":
    from llmkit.metrics import gate as rule

    return rule.Check(name, "fingerprint", "intact", 0.0, rule.FAIL, "its files are not those that were published")


def failure(gate: Mapping[str, Any]) -> str:
    """What a verdict that is no pass says, in a line."""
    wrong = [one for one in gate["checks"] if one["verdict"] == gate["verdict"]]
    if not wrong:
        return "not one of its limits could be held against what was measured"
    told = "; ".join(f"{one['model']}, {one['metric']}: {one['why']}" for one in wrong[:3])
    return f"{told}{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
