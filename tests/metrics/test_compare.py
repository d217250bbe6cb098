"""Two reports side by side: the right rows, the right signs, and a gate over all of them."""

import json
from pathlib import Path

import pytest

from llmkit.errors import DataError, UsageError
from llmkit.metrics.compare import MOST_CHANGED, compare
from llmkit.metrics.text import score
from tests.metrics.reporting import reference, worse, write_report


@pytest.fixture
def reports(tmp_path: Path) -> tuple[str, str]:
    good = write_report(tmp_path / "a", {"merged": reference, "q4": reference}, rows={"q4": {"size_bytes": 10, "kl": 0.1}})
    bad = write_report(tmp_path / "b", {"merged": reference, "q4": worse}, rows={"q4": {"size_bytes": 20, "kl": 0.2}})
    return str(good), str(bad)


def test_rows_of_one_name_are_compared_and_a_fall_is_a_fall(reports: tuple[str, str]) -> None:
    same, fell = compare(reports).comparisons
    assert (same.baseline, same.model, same.same) == (f"{reports[0]}:merged", f"{reports[1]}:merged", 40)
    assert all(one.difference == 0 and one.p_value == 1 for one in same.metrics.values())
    assert same.changed == ()
    rouge = fell.metrics["rougeL"]
    expected = score([worse(number) for number in range(40)], [reference(number) for number in range(40)]).metrics["rougeL"]
    assert (rouge.before, rouge.after) == pytest.approx((100, expected))
    assert rouge.difference == pytest.approx(expected - 100)
    assert rouge.low <= rouge.difference <= rouge.high < 0
    assert (rouge.wins, rouge.losses, rouge.ties, fell.same) == (0, 40, 0, 0)
    assert rouge.p_value < 0.01


def test_where_less_is_better_a_rise_loses_and_its_sign_stays(reports: tuple[str, str], tmp_path: Path) -> None:
    again = write_report(tmp_path / "c", {"merged": lambda number: "a b " * 20})
    [found] = compare([f"{reports[0]}:merged", str(again)]).comparisons
    repetition = found.metrics["repetition"]
    assert not repetition.higher_is_better
    assert 0 < repetition.low <= repetition.difference <= repetition.high
    assert (repetition.wins, repetition.losses) == (0, 40)
    assert found.metrics["length_ratio"].wins is None
    assert found.metrics["distinct1"].wins is None


def test_rows_may_be_chosen_and_reports_that_share_none_compare_their_references(
    tmp_path: Path, reports: tuple[str, str]
) -> None:
    [one] = compare([f"{reports[0]}:merged", f"{reports[0]}:q4"]).comparisons
    assert one.model.endswith(":q4")
    other = write_report(tmp_path / "c", {"predictions": worse})
    [found] = compare([reports[0], str(other)]).comparisons
    assert (found.baseline[-7:], found.model[-12:]) == (":merged", ":predictions")
    [chosen] = compare([reports[0], f"{reports[1]}:q4"]).comparisons
    assert (chosen.baseline[-3:], chosen.model[-3:]) == (":q4", ":q4")


def test_each_further_report_is_compared_with_the_first(reports: tuple[str, str], tmp_path: Path) -> None:
    third = str(write_report(tmp_path / "c", {"merged": worse}))
    found = compare([f"{reports[0]}:merged", f"{reports[1]}:merged", third]).comparisons
    assert [one.model for one in found] == [f"{reports[1]}:merged", f"{third}:merged"]
    assert {one.baseline for one in found} == {f"{reports[0]}:merged"}


def test_the_samples_that_changed_most_come_first(reports: tuple[str, str]) -> None:
    found = compare([f"{reports[0]}:q4", reports[1]]).comparisons[0].changed
    moves = [abs(one.score_after - one.score_before) for one in found]
    assert len(found) == MOST_CHANGED
    assert moves == sorted(moves, reverse=True)
    number = int(found[0].id.removeprefix("id"))
    assert (found[0].before, found[0].after) == (reference(number), worse(number))


def test_samples_in_another_order_are_paired_by_id(reports: tuple[str, str], tmp_path: Path) -> None:
    turned = write_report(tmp_path / "c", {"merged": reference}, change=lambda lines: lines[::-1])
    assert compare([f"{reports[0]}:merged", str(turned)]).comparisons[0].same == 40


def test_numbers_stand_side_by_side_unless_they_mean_two_things(reports: tuple[str, str]) -> None:
    [found] = compare([f"{reports[0]}:q4", f"{reports[1]}:q4"]).comparisons
    assert dict(found.numbers) == {"size_bytes": (10.0, 20.0)}
    assert [note.split()[0] for note in found.notes] == ["kl"]


def test_with_max_drop_it_is_a_gate_over_all_of_them(reports: tuple[str, str]) -> None:
    assert compare(reports).exit_code == 0
    fell = compare(reports, max_drop={"rougeL": 1.0, "bleu": 1.0})
    assert fell.exit_code == 1
    assert fell.verdict is not None
    assert [check.verdict for check in fell.verdict.checks] == ["pass", "pass", "fail", "fail"]
    assert compare([f"{one}:merged" for one in reports], max_drop={"rougeL": 0.0}).exit_code == 0


def test_too_few_samples_are_neither_pass_nor_fail(tmp_path: Path) -> None:
    names = [
        str(write_report(tmp_path / name, {"merged": answer}, samples=5)) for name, answer in (("a", reference), ("b", worse))
    ]
    assert compare(names, max_drop={"rougeL": 1.0}).exit_code == 2


def test_what_it_found_is_plain_json(reports: tuple[str, str]) -> None:
    written = json.dumps(compare(reports, max_drop={"rougeL": 1.0}).to_json(), allow_nan=False)
    found = json.loads(written)
    assert found["gate"]["verdict"] == "fail"
    assert found["comparisons"][1]["metrics"]["rougeL"]["losses"] == 40


def test_what_cannot_be_compared_says_all_that_is_in_the_way(reports: tuple[str, str], tmp_path: Path) -> None:
    other = write_report(tmp_path / "c", {"merged": reference}, samples=39, settings={"max_new_tokens": 9})
    with pytest.raises(DataError) as caught:
        compare([reports[0], str(other)])
    assert caught.value.exit_code == 2
    assert "1 samples are in the first only: 'id39'" in caught.value.what
    assert "the setting max_new_tokens differs: 48 and 9" in caught.value.what


def test_wrong_names_are_told_with_the_right_ones(reports: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two reports"):
        compare(reports[:1])
    with pytest.raises(DataError, match="no row 'q5'") as caught:
        compare([reports[0], f"{reports[1]}:q5"])
    assert caught.value.next == "it has 'merged', 'q4'"
    with pytest.raises(UsageError, match="no metric 'rougel'") as wrong:
        compare(reports, max_drop={"rougel": 1.0})
    assert "rougeL" in wrong.value.next
    several = write_report(tmp_path / "c", {"x": reference, "y": reference}, reference="merged")
    with pytest.raises(DataError, match="several models"):
        compare([reports[0], str(several)])
