"""The report of a cleaning run, as plain values: `report/cleaning.py` draws it. Knows what was counted; nothing of files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.data import rules
from llmkit.data.arrange import NEAR, TEST_SETS, Arranged
from llmkit.data.cleaning import EXACT, Outcome
from llmkit.data.measure import distributions
from llmkit.data.sieve import LONGER, MAX_REJECTED_RATIO, NEARLY_EQUAL, PAIRS, QUARANTINE, Example, Spec, Tally

WARN = 0.5  # of what a rule sees: more removed than this is told
_TITLES = {
    QUARANTINE: "the line is a JSON object of a known format",
    EXACT: "no earlier dialogue says the same, character by character",
    NEAR: "no earlier dialogue is nearly the same",
    TEST_SETS: "it asks nothing that a named test set asks",
}


def report(
    outcome: Outcome, arranged: Arranged | None, spec: Spec, config: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """What `report.json` holds. `sizes`: source → bytes."""
    ran = list(_rules(outcome, spec, config))
    kept = None if arranged is None else {one for one in outcome.after if arranged.sides[one.place] < len(outcome.sides)}
    return {
        "name": _name(list(sizes)),
        "sources": [{"label": name, "bytes": size, "read": outcome.by_source.get(name, 0)} for name, size in sizes.items()],
        "read": outcome.read,
        "kept": outcome.kept,
        "rejected": outcome.rejected,
        "quarantined": outcome.quarantined,
        "seconds": None,
        "rules": ran,
        "warnings": [*(_warning(rule) for rule in ran if rule["removed"] > WARN * rule["seen"]), *_poor_pairs(outcome.tally)],
        "distributions": distributions(outcome.before, outcome.after if kept is None else sorted(kept)),
        "sampled": spec.every if spec.every > 1 else None,
        "clusters": [] if arranged is None else arranged.clusters,
        "pairs": {kind: count for (name, kind), count in sorted(outcome.tally.found.items()) if name == PAIRS},
        "personal": _found(outcome.tally, "personal", config["personal"]),
        "sensitive": _found(outcome.tally, "sensitive", config["sensitive"]),
        "split": None if arranged is None or not arranged.families else _split(outcome, arranged, config),
        "config": dict(config),
    }


def _name(sources: Sequence[str]) -> str:
    return f"{sources[0]} and {len(sources) - 1} more" if len(sources) > 1 else sources[0]


def _rules(outcome: Outcome, spec: Spec, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each rule that ran, in order, with what it saw: all that the rules before it left."""
    names = [QUARANTINE, *rules.names(spec.rules)]
    names += [EXACT] if config["dedup"]["exact"] else []
    names += [NEAR] if spec.near is not None else []
    names += [TEST_SETS] if config["decontaminate"] else []
    tally, left = outcome.tally, outcome.read
    for name in names:
        reasons = {reason: count for (rule, reason), count in tally.removed.items() if rule == name}
        removed = sum(reasons.values())
        yield {
            "name": name,
            "title": _TITLES.get(name) or rules.RULES[name.partition(":")[0]],
            "seen": left,
            "removed": removed,
            "changed": tally.changed[name],
            "reasons": [
                {"reason": reason, "count": reasons[reason], "examples": [_shown(one) for one in tally.removals[name, reason]]}
                for reason in sorted(reasons, key=lambda reason: (-reasons[reason], reason))
            ],
            "changes": [{"source": one.source, "before": one.before, "after": one.text} for one in tally.changes.get(name, ())],
        }
        left -= removed


def _shown(example: Example) -> dict[str, str]:
    return {"source": example.source, "text": example.text, "detail": example.detail}


def _warning(rule: Mapping[str, Any]) -> str:
    most = rule["reasons"][0]["reason"]
    return f"{rule['name']} removed {rule['removed'] / rule['seen']:.0%} of what it saw, most for {most}"


def _poor_pairs(tally: Tally) -> Iterator[str]:
    """Counted before duplicates went: what ORPO and DPO would learn from such pairs is not what people prefer."""
    if count := tally.found[PAIRS, NEARLY_EQUAL]:
        yield f"in {count:,} pairs the two answers are nearly equal: they teach little"
    if count := tally.found[PAIRS, LONGER]:
        yield f"in {count:,} pairs the rejected answer is over {MAX_REJECTED_RATIO:g} times as long: they teach length"


def _found(tally: Tally, rule: str, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if config is None:
        return None
    kinds = {kind: count for (name, kind), count in sorted(tally.found.items()) if name == rule}
    return {"action": config["action"], "kinds": kinds, "count": sum(kinds.values())}


def _split(outcome: Outcome, arranged: Arranged, config: Mapping[str, Any]) -> dict[str, Any]:
    strata = [
        {"source": source, "language": language, "train": counts[0], "valid": counts[1], "test": counts[2]}
        for (source, language), counts in arranged.strata.items()
    ]
    return {
        **outcome.sides,
        "families": arranged.families,
        "near": config["split"]["near"],
        "strata": strata,
        "leaks": 0,
        "checked": "every held-out dialogue against every training one, exactly: all of it, the user's words, the answers",
        "moved": arranged.moved,
    }
