"""What stands below the table: asked for, so told, and silent about the rest."""

from llmkit.report import brief, evaluation
from tests.report import evaluations


def test_programs_benchmarks_lists_and_people_are_told_in_a_line_each() -> None:
    report = evaluations.report()
    for row in report["models"].values():
        row["metrics"] |= {"sensitive": 2.0, "llamafactory.bleu4": 12.25}
    report["tasks"] = {"cmmlu": {"merged": {"acc": 0.3125, "acc_stderr": 0.01}}}
    report["code"] = {"merged": {"pass@1": 12.5, "syntax_valid": 0.9}}
    report["review"] = {"models": ["merged", "q8_0"], "win_rate": 0.5, "interval": [0.4, 0.6]}
    told = brief.lines(report)
    assert told[0].startswith("Ship ")
    assert any(line.startswith("sensitive: base 2.0") for line in told)
    assert any(line.startswith("llamafactory.bleu4: base 12.2") for line in told)
    assert "cmmlu acc: merged 0.312" in told
    assert "pass@1: merged 12.5" in told
    assert "people: merged wins 50 % [40, 60] against q8_0, ties by half" in told
    assert "merged 12.5" in evaluation.summary(report)


def test_what_was_not_asked_for_is_not_told() -> None:
    plain = evaluations.report()
    for key in ("tasks", "code", "review"):
        plain.pop(key, None)
    assert [line for line in brief.lines(plain) if not line.startswith("Ship")] == []
