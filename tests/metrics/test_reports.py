"""Reports from disk: what is not one is a clear error, and what may not be compared says why."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.metrics import reports
from tests.metrics.reporting import reference, worse, write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("reports") / "a", {"merged": reference, "q4": worse})


def test_a_report_is_read_as_it_was_written(folder: Path) -> None:
    found = reports.read(folder)
    assert (list(found.rows), found.reference, len(found.samples)) == (["merged", "q4"], "merged", 40)
    assert found.samples[3].prompt == (("user", "question 3?"),)
    assert found.samples[3].answers == {"merged": reference(3), "q4": worse(3)}
    assert reports.obstacles(found, reports.read(folder)) == []


def test_a_place_is_a_folder_a_file_or_either_with_a_row(folder: Path, tmp_path: Path) -> None:
    for name, row in ((f"{folder}", None), (f"{folder}/report.json", None), (f"{folder}:q4", "q4")):
        assert reports.locate(name) == (folder, row)
    colon = write_report(tmp_path / "a:b", {"merged": reference})
    assert reports.locate(str(colon)) == (colon, None)
    for name in (str(tmp_path), "none:merged", "", ":", "\0", "x" * 5000):
        with pytest.raises(DataError, match=r"no report\.json"):
            reports.locate(name)


def test_the_order_of_the_samples_does_not_matter_and_an_id_may_stand_twice(folder: Path, tmp_path: Path) -> None:
    turned = write_report(tmp_path / "b", {"merged": reference}, change=lambda lines: lines[::-1])
    assert reports.obstacles(reports.read(folder), reports.read(turned)) == []
    twice = [
        reports.read(write_report(tmp_path / name, {"merged": reference}, change=lambda lines: [*lines, lines[0]]))
        for name in "cd"
    ]
    assert reports.obstacles(*twice) == []
    assert len(twice[0].by_key) == 41


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"samples": 38}, "2 samples are in the first only: 'id38', 'id39'"),
        ({"samples": 45}, "5 samples are in the second only: 'id40', 'id41', 'id42', …"),
        ({"change": lambda lines: [{**one, "prompt": []} for one in lines]}, "the prompts of 40 samples differ"),
        ({"change": lambda lines: [{**lines[0], "reference": "x"}, *lines[1:]]}, "the references of 1 samples differ: 'id0'"),
        ({"signatures": {"bleu": "nrefs:1|tok:13a"}}, "the signature bleu differs: nrefs:1|tok:zh and nrefs:1|tok:13a"),
        ({"settings": {"max_new_tokens": 24}}, "the setting max_new_tokens differs: 48 and 24"),
        ({"settings": {"decoding": "sampling", "seed": 1}}, "the setting decoding differs"),
    ],
)
def test_what_differs_is_named(folder: Path, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    other = reports.read(write_report(tmp_path / "b", {"merged": reference}, **changes))
    assert any(why in line for line in reports.obstacles(reports.read(folder), other))


def test_what_an_older_report_does_not_say_and_a_greedy_seed_are_no_obstacle(folder: Path, tmp_path: Path) -> None:
    for settings_ in ({}, {"seed": 7, "batch_size": 3}, None, "x"):
        other = write_report(tmp_path / "b", {"merged": reference}, settings=settings_, signatures=None)
        assert reports.obstacles(reports.read(folder), reports.read(other)) == []


def test_perplexity_and_kl_compare_only_where_the_reports_prove_that_they_may(tmp_path: Path) -> None:
    def made(name: str, tokenizer: str | None, fingerprint: str | None) -> reports.Report:
        rows = {"merged": {"fingerprint": fingerprint}}
        return reports.read(write_report(tmp_path / name, {"merged": reference}, rows=rows, settings={"tokenizer": tokenizer}))

    one, same, other, silent = made("a", "t", "f"), made("b", "t", "f"), made("c", "u", "g"), made("d", None, None)
    assert reports.incomparable_numbers(one, same) == {}
    for report in (other, silent):
        assert set(reports.incomparable_numbers(one, report)) == {"perplexity", "kl", "retention"}
    assert set(reports.incomparable_numbers(silent, silent)) == {"perplexity", "kl", "retention"}


@pytest.mark.parametrize(
    ("report", "samples", "what"),
    [
        ("{", None, "not JSON"),
        ("[" * 100_000, None, "not JSON"),
        ("[]", None, "not a JSON object"),
        ("{}", None, 'no "models"'),
        ('{"models": {}}', None, 'no "models"'),
        ('{"models": {"merged": 3}}', None, 'no "models"'),
        (None, "", "there are no samples"),
        (None, "{broken", "not JSON"),
        (None, '{"id": 3}', '"id" and "reference"'),
        (None, '{"id": "a", "reference": "b", "answers": {"merged": 1}}', '"answers"'),
        (None, '{"id": "a", "reference": "b", "answers": {}, "prompt": [{"role": 1}]}', '"prompt"'),
        (None, '{"id": "a", "reference": "b", "answers": {}}', "has not answered every sample"),
    ],
)
def test_what_is_no_report_is_a_data_error(tmp_path: Path, report: str | None, samples: str | None, what: str) -> None:
    write_report(tmp_path, {"merged": reference})
    for name, content in (("report.json", report), ("samples.jsonl", samples)):
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=what):
        reports.read(tmp_path)


def test_a_missing_file_a_pipe_and_a_huge_file_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, {"merged": reference})
    monkeypatch.setattr(reports, "_MOST_SAMPLE_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        reports.read(tmp_path)
    for name in ("samples.jsonl", "report.json"):
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match=f"there is no {name}"):
            reports.read(tmp_path)
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=f"there is no {name}"):
            reports.read(tmp_path)


def test_half_a_surrogate_pair_in_an_answer_is_read(tmp_path: Path) -> None:
    write_report(tmp_path, {"merged": lambda number: "\ud83d"})
    assert reports.read(tmp_path).samples[0].answers == {"merged": "\ud83d"}


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
KEYS = st.sampled_from(["id", "reference", "answers", "prompt", "models", "settings", "signatures", "merged"])


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(), st.dictionaries(KEYS, JSON).map(lambda x: json.dumps(x).encode())), st.booleans())
def test_no_bytes_raise_anything_but_a_data_error(folder: Path, content: bytes, whole: bool) -> None:
    spoilt = folder.parent / "fuzz"
    write_report(spoilt, {"merged": reference}, samples=2)
    (spoilt / ("report.json" if whole else "samples.jsonl")).write_bytes(content)
    try:
        found = reports.read(spoilt)
        reports.obstacles(found, reports.read(folder))
        reports.incomparable_numbers(found, found)
    except DataError:
        pass
