"""Predictions and references: paired by id, and every broken file one clear error."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.metrics.pairs import read_pairs

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
Write = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def both(predictions: str | bytes, references: str | bytes) -> tuple[Path, Path]:
        paths = (tmp_path / "P.jsonl", tmp_path / "R.jsonl")
        for path, content in zip(paths, (predictions, references), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return paths

    return both


def line(id: object, text: object) -> str:
    return json.dumps({"id": id, "text": text}, ensure_ascii=False) + "\n"


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(TEXT, st.tuples(TEXT, TEXT.filter(lambda text: bool(text.strip()))), min_size=1),
    st.randoms(use_true_random=False),
)
def test_pairs_come_in_the_order_of_the_references_whatever_that_of_the_predictions(
    folder: Path, samples: dict[str, tuple[str, str]], rng: random.Random
) -> None:
    shuffled = list(samples)
    rng.shuffle(shuffled)
    predictions, references = folder / "p.jsonl", folder / "r.jsonl"
    predictions.write_text("".join(line(id, samples[id][0]) for id in shuffled), "utf-8")
    references.write_text("".join(line(id, samples[id][1]) for id in samples), "utf-8")
    assert read_pairs(predictions, references) == [(id, *texts) for id, texts in samples.items()]


def test_blank_lines_a_bom_and_whole_number_ids_are_read(write: Write) -> None:
    paths = write(b"\xef\xbb\xbf" + line(7, "嗨").encode() + b"\r\n\r\n", line("7", "你好"))
    assert read_pairs(*paths) == [("7", "嗨", "你好")]


def test_an_empty_prediction_is_kept(write: Write) -> None:
    assert read_pairs(*write(line("a", ""), line("a", "x"))) == [("a", "", "x")]


GOOD = line("a", "x")


@pytest.mark.parametrize(
    ("predictions", "references", "what", "where"),
    [
        (GOOD + "{broken", GOOD, "not JSON", "P.jsonl:2"),
        (b'{"id": "a", "text": "\xff"}', GOOD, "not JSON", "P.jsonl:1"),
        ("[" * 100_000, GOOD, "not JSON", "P.jsonl:1"),
        (r'{"id": "a", "text": "\ud800"}', GOOD, "not JSON", "P.jsonl:1"),
        ("[1]", GOOD, "not a JSON object", "P.jsonl:1"),
        ('{"text": "x"}', GOOD, '"id" is missing', "P.jsonl:1"),
        ('{"id": "a"}', GOOD, '"text" is missing', "P.jsonl:1"),
        (line(None, "x"), GOOD, '"id" is neither', "P.jsonl:1"),
        (line(True, "x"), GOOD, '"id" is neither', "P.jsonl:1"),
        (line("a", 3), GOOD, '"text" is not a string', "P.jsonl:1"),
        (GOOD + "\n" + GOOD, GOOD, "'a' stands twice; first on line 1", "P.jsonl:3"),
        (GOOD, GOOD + line("b", " "), "reference 'b' is empty", "R.jsonl:2"),
        (GOOD, "\n", "holds no lines", "R.jsonl"),
        ("", GOOD, "holds no lines", "P.jsonl"),
    ],
)
def test_a_broken_line_is_named_with_its_file_and_number(
    write: Write, predictions: str | bytes, references: str, what: str, where: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_pairs(*write(predictions, references))
    assert caught.value.where.endswith(where)


def test_ids_in_one_file_only_are_counted_and_the_first_ones_named(write: Write) -> None:
    paths = write("".join(line(f"p{n}", "x") for n in range(5)) + GOOD, line("r0", "x") + GOOD)
    with pytest.raises(DataError) as caught:
        read_pairs(*paths)
    assert "1 of 2 ids ('r0') in the references only" in caught.value.what
    assert "5 of 6 ids ('p0', 'p1', 'p2', …) in the predictions only" in caught.value.what


def test_a_missing_file_and_a_folder_are_data_errors(write: Write, tmp_path: Path) -> None:
    predictions, references = write(GOOD, GOOD)
    with pytest.raises(DataError, match="no such file"):
        read_pairs(predictions, tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path, references)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(), st.recursive(st.none() | st.floats() | TEXT, st.lists).map(lambda x: json.dumps(x).encode())))
def test_no_bytes_raise_anything_but_a_data_error(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_pairs(path, path)
