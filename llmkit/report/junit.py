"""A gate's checks as JUnit XML, which every CI shows. Knows the format; judges nothing.

The elements and attributes are those that Jenkins, GitLab and GitHub's readers share: a testsuite for each model, a testcase
for each limit. A broken limit is a `failure`; what could not be judged is an `error`, since a `skipped` would count as well.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from llmkit.report.html import printable
from llmkit.report.values import parts

_OUTCOMES = {"pass": None, "fail": "failure"}  # all else is an error


def xml(gate: Mapping[str, Any]) -> str:
    """The report's "gate" as a JUnit document, its declaration included."""
    suites: dict[str, list[Mapping[str, Any]]] = {}
    for check in parts(gate, "checks"):
        suites.setdefault(str(check.get("model", "")), []).append(check)
    every = [check for checks in suites.values() for check in checks]
    root = ElementTree.Element("testsuites", {"name": "llmkit gate", **_counts(every)})
    for model, checks in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": printable(model), "skipped": "0", **_counts(checks)})
        for check in checks:
            _add_case(suite, model, check)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, model: str, check: Mapping[str, Any]) -> None:
    kind, metric = str(check.get("kind", "")), str(check.get("metric", ""))
    case = ElementTree.SubElement(
        suite, "testcase", classname=printable(f"llmkit.gate.{model}"), name=printable(f"{kind} {metric}"), time="0"
    )
    outcome = _outcome(check)
    if outcome:
        why = printable(check.get("why", ""))
        ElementTree.SubElement(case, outcome, type=printable(kind), message=why).text = why


def _counts(checks: list[Mapping[str, Any]]) -> dict[str, str]:
    outcomes = [_outcome(check) for check in checks]
    return {
        "tests": str(len(checks)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "time": "0",
    }


def _outcome(check: Mapping[str, Any]) -> str | None:
    return _OUTCOMES.get(str(check.get("verdict")), "error")
