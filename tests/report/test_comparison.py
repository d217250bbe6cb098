"""Two models side by side: every number once, and no answer that can leave its place."""

import re
from typing import Any

import pytest

from llmkit.report.comparison import markdown, render

HOSTILE = "<script>alert(1)</script> | [x](javascript:1) </details> \x1b[2J\u202e\n# head " + "长" * 5000


def change(difference: float, p_value: float | None, **more: Any) -> dict[str, Any]:
    known = {
        "before": 20.0,
        "after": 20.0 + difference,
        "difference": difference,
        "low": difference - 1,
        "high": difference + 1,
    }
    counts = {"wins": 3, "losses": 30, "ties": 67, "unit": "points", "higher_is_better": True}
    return {**known, "p_value": p_value, **counts, **more}


@pytest.fixture
def compared() -> dict[str, Any]:
    return {
        "comparisons": [
            {
                "baseline": "runs/a:merged",
                "model": "runs/a:[q4]",
                "samples": 100,
                "same": 41,
                "metrics": {
                    "rougeL": change(-2.04, 0.0005),
                    "repetition": change(3.0, 0.01, higher_is_better=False),
                    "distinct2": change(-0.001, 0.9, wins=None, losses=None, ties=None),
                    "length_ratio": change(1.0, None, higher_is_better=None),
                },
                "numbers": {"size_bytes": [569_600_000, 253_000_000], "kl": [None, 0.25]},
                "ranked_by": "rougeL",
                "changed": [
                    {
                        "id": f"id{index}",
                        "prompt": [["user", "你好？"]],
                        "reference": "你好！",
                        "before": HOSTILE,
                        "after": HOSTILE,
                        "score_before": 100.0,
                        "score_after": None,
                    }
                    for index in range(10)
                ],
                "notes": ["perplexity is left out: why"],
            }
        ],
        "gate": None,
    }


def test_the_table_has_both_scores_the_difference_its_interval_and_who_won(compared: dict[str, Any]) -> None:
    lines = render(compared, width=100, color=False).splitlines()
    assert lines[0] == "runs/a:[q4] against runs/a:merged"
    assert lines[1] == "41 of 100 answers are the same, text for text"
    row = next(line for line in lines if line.startswith("rougeL"))
    assert row.split() == ["rougeL", "20.00", "17.96", "-2.04", "-3.04", "…", "-1.04", "<", "0.001", "3", "30", "67"]
    assert "+0.00" in next(line for line in lines if line.startswith("distinct2"))
    assert next(line for line in lines if line.startswith("size")).split() == ["size,", "MB", "569.60", "253.00", "-316.60"]
    assert next(line for line in lines if line.startswith("kl")).split() == ["kl", "–", "0.25", "–"]
    assert sum(line.startswith("id") for line in lines) == 3


def test_colour_tells_better_from_worse_only_where_it_is_no_chance(compared: dict[str, Any]) -> None:
    colored = render(compared, width=100, color=True)
    assert len(re.findall(r"\x1b\[31m(?:rougeL|repetition)", colored)) == 2
    assert not re.search(r"\x1b\[3[12]m(?:distinct2|length_ratio)", colored)


@pytest.mark.parametrize("width", [20, 60, 100])
def test_texts_are_cut_and_harmless_at_any_width(compared: dict[str, Any], width: int) -> None:
    text = render(compared, width=width, color=False)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text) < 10_000
    assert re.search(r"20\.00 +17\.96 +-2\.04", text), "no digit is lost on a narrow terminal"


def test_the_summary_folds_the_samples_away_and_keeps_its_shape(compared: dict[str, Any]) -> None:
    text = markdown(compared)
    assert text.count("<details>") == text.count("</details>") == 1
    assert "<script>" not in text
    assert len(text) < 40_000
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {11}
    assert "### runs/a\\:\\[q4\\] against runs/a\\:merged" in text.splitlines()


def test_the_gate_is_told_with_it(compared: dict[str, Any]) -> None:
    check = {"model": "q4", "metric": "bleu", "kind": "max_drop", "verdict": "fail", "why": "because"}
    compared["gate"] = {"verdict": "fail", "checks": [check]}
    assert "gate: fail" in render(compared, width=80, color=False)
    assert markdown(compared).startswith("**Gate: fail")
