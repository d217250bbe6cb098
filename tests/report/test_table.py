"""The report table: one shape for terminal and README, and no lost fine-tune goes unseen."""

import re
from typing import Any

import pytest
from rich.cells import cell_len

from llmkit.report.table import markdown, render


def model(rouge_l: float, **more: Any) -> dict[str, Any]:
    metrics = {"bleu": rouge_l / 2, "rouge1": rouge_l + 3, "rouge2": rouge_l / 3, "rougeL": rouge_l, "chrf": rouge_l - 1}
    known = {"size_bytes": 536_223_056, "tokens_per_second": 118.42, "peak_memory_bytes": 2_103_000_000, "n_samples": 120}
    return {"metrics": metrics, "retention": None, "kl": None, "runtime": "transformers", **known, **more}


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "models": {
            "base": model(2.5, retention=0.0, kl=3.98),
            "merged": model(20.5, retention=1.0, kl=0.0),
            "int8": model(20.2, runtime="bitsandbytes"),
            "q5_k_m": model(20.3, retention=0.968, kl=0.127, runtime="llama.cpp"),
            "q4_k_m": model(3.9, retention=0.397, kl=2.4, runtime="llama.cpp"),
        }
    }


def test_rows_stand_in_the_reports_order_with_every_number(report: dict[str, Any]) -> None:
    lines = render(report, width=100, color=False).splitlines()
    heading = ["model", "BLEU", "R-1", "R-2", "R-L", "chrF", "retention", "KL", "size", "tok/s", "memory", "runtime"]
    assert lines[0].split() == heading
    assert [line.split()[0] for line in lines[1:6]] == list(report["models"])
    merged = ["merged", "10.2", "23.5", "6.8", "20.5", "19.5", "1.000", "0.000", "536", "MB", "118.4", "2103", "MB"]
    assert lines[2].split() == [*merged, "transformers"]
    assert "120 samples a model" in lines


def test_a_variant_that_lost_the_fine_tune_is_marked_without_colour(report: dict[str, Any]) -> None:
    for text in (render(report, width=100, color=False), markdown(report)):
        assert len(re.findall(r"q4_k_m !", text)) == 1
        assert "! q4_k_m lost the fine-tune: retention 0.397, the floor is 0.8" in text
        assert text.count("lost the fine-tune") == 1, "the base has no fine-tune to lose, the others kept it"


def test_a_retention_that_is_no_number_is_marked_too(report: dict[str, Any]) -> None:
    report["models"]["int8"]["retention"] = float("nan")
    assert "int8 !" in render(report, width=100, color=False)


@pytest.mark.parametrize("width", [120, 100, 80, 60, 45])
def test_the_table_fits_the_terminal_and_names_what_it_left_out(report: dict[str, Any], width: int) -> None:
    report["models"]["模型"] = model(1.0)
    text = render(report, width=width, color=False)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert ("left out" in text) == (width < 100)
    assert "…" not in text
    assert all(heading in text.splitlines()[0] for heading in ("BLEU", "R-L", "retention", "size"))


def test_far_too_narrow_a_terminal_still_gets_whole_numbers(report: dict[str, Any]) -> None:
    assert "20.5" in render(report, width=10, color=False)


def test_escape_codes_come_only_with_colour(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain = render(report, width=100, color=False)
    monkeypatch.setenv("NO_COLOR", "1")
    colored = render(report, width=100, color=True)
    assert "\x1b" not in plain
    assert "\x1b[31m" in colored
    without_codes = re.sub(r"\x1b\[[\d;]*m", "", colored)
    assert [line.rstrip() for line in without_codes.splitlines()] == plain.splitlines()


def test_columns_that_nothing_fills_are_not_shown() -> None:
    alone = {"models": {"predictions": {"metrics": model(20.0)["metrics"], "n_samples": 3}}}
    assert render(alone, width=100, color=False).splitlines()[0].split() == ["model", "BLEU", "R-1", "R-2", "R-L", "chrF"]


def test_unequal_sample_counts_get_a_column(report: dict[str, Any]) -> None:
    report["models"]["int8"]["n_samples"] = 60
    text = render(report, width=110, color=False)
    assert " n " in text.splitlines()[0]
    assert "samples a model" not in text


def test_a_name_in_brackets_is_no_markup() -> None:
    assert "[red]q8[/red]" in render({"models": {"[red]q8[/red]": model(1.0)}}, width=120, color=False)


def test_markdown_holds_the_same_cells_as_the_terminal(report: dict[str, Any]) -> None:
    report["models"]["a|b"] = model(7.0)
    table, notes = markdown(report).split("\n\n")
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()]
    assert {len(row) for row in rows} == {12}
    terminal = render(report, width=120, color=False).splitlines()
    cells = [[cell.replace(r"\|", "|") for cell in row] for row in rows if row[0] != "---"]
    assert [" ".join(row).split() for row in cells] == [line.split() for line in terminal[: len(cells)]]
    assert notes.splitlines() == ["- ! q4_k_m lost the fine-tune: retention 0.397, the floor is 0.8", "- 120 samples a model"]


def test_intervals_stand_where_there_is_room(report: dict[str, Any]) -> None:
    for entry in report["models"].values():
        entry["intervals"] = {key: [value - 1.5, value + 1.5] for key, value in entry["metrics"].items()}
    narrow, some, wide = (render(report, width=width, color=False) for width in (96, 102, 200))
    assert "±" not in narrow
    assert "20.5±1.5" in some, "ROUGE-L is the first to get one"
    assert some.count("±") < wide.count("±")
    assert wide.count("±1.5") == markdown(report).count("±1.5") == 5 * 5
    assert "± half of the 95 % bootstrap interval" in wide
    assert max(cell_len(line) for line in some.splitlines()) <= 102


def test_perplexity_and_failed_answers_have_columns(report: dict[str, Any]) -> None:
    assert not {"PPL", "failed"} & set(render(report, width=200, color=False).splitlines()[0].split())
    report["models"]["merged"] |= {"perplexity": 2.831, "failed": 3}
    report["models"]["int8"] |= {"failed": 0}
    lines = render(report, width=200, color=False).splitlines()
    assert {"PPL", "failed"} <= set(lines[0].split())
    assert {"2.83", "3"} <= set(lines[2].split())


@pytest.mark.parametrize("odd", ["7", True, [], {}, None, 10**400, float("inf")])
def test_a_foreign_report_is_a_table_too(odd: Any, report: dict[str, Any]) -> None:
    keys = ("retention", "kl", "size_bytes", "n_samples", "failed", "perplexity", "metrics", "intervals", "runtime")
    report["models"]["int8"] = dict.fromkeys(keys, odd)
    report["models"]["nf4"] = {"metrics": {"bleu": odd}, "intervals": {"bleu": [odd, 1]}}
    report["models"]["odd"] = odd
    for text in (render(report, width=100, color=False), markdown(report)):
        assert "int8" in text
        assert "merged" in text


def test_a_name_cannot_break_its_line() -> None:
    text = render({"models": {"a\n\x1b[31mb\u202e": model(1.0)}}, width=120, color=False)
    assert "a ␛[31mb⟨U+202E⟩" in text


def test_sizes_are_megabytes_until_they_are_long() -> None:
    text = render({"models": {"big": model(1.0, size_bytes=18_500_000_000)}}, width=120, color=False)
    assert "18.5 GB" in text
    assert "2103 MB" in text
