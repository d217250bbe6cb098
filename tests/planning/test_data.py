"""Lengths without a tokenizer, and the batches that follow from them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.artifact import Artifact, Kind, foreign
from llmkit.planning import data
from llmkit.planning.data import Data, Sample
from tests.conftest import LINES
from tests.planning.shared import training

LARGE = 262_144


def test_the_guess_is_near_a_real_tokenizer_s_count(smollm2: Path) -> None:
    from llmkit.engine.loading import load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    real = sum(len(tokenizer(line)["input_ids"]) for line in LINES)
    guess = sum(data.tokens(line, len(tokenizer)) - data.MARKS for line in LINES)
    assert 0.7 < guess / real < 1.3


def test_a_small_vocabulary_needs_more_tokens_for_chinese_and_as_many_for_english() -> None:
    assert data.tokens("法国的首都是哪里？" * 10, 32_000) > 2 * data.tokens("法国的首都是哪里？" * 10, LARGE)
    assert data.tokens("Where is it?" * 10, 32_000) == data.tokens("Where is it?" * 10, LARGE)


@given(
    st.lists(st.builds(Sample, st.integers(1, 600), st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=60),
    st.sampled_from(["sft", "orpo"]),
    st.sampled_from([None, 1, 2, 4]),
)
def test_a_course_sees_no_more_than_the_longest_records_at_once(
    samples: list[Sample], objective: str, micro: int | None
) -> None:
    settings = training(objective=objective, batch_size=4, micro_batch=micro, max_length=1024, epochs=2)
    found = data.course(Data(samples, len(samples), 1, "here"), settings, seed=1)
    kept = [one for one in samples if one.prompt + one.answer <= 1024]
    whole = sorted((one.prompt + one.answer + (one.rejected if objective == "orpo" else 0) for one in kept), reverse=True)
    if kept:
        assert max(whole) * (micro == 1) <= found.load.tokens <= sum((whole * 4)[:4]) * 4
        assert found.load.scored <= found.load.tokens
    assert found.steps >= 1
    assert found.load.longest <= 2 * 1024


def test_unseen_data_are_taken_to_be_as_long_as_they_may_be() -> None:
    found = data.worst(training(batch_size=8, micro_batch=2, max_length=512))
    assert (found.load.tokens, found.steps, found.tokens) == (1024, 0, 0)


def test_a_split_that_is_missing_or_damaged_tells_nothing(tmp_path: Path) -> None:
    assert data.of_split(tmp_path / "train.jsonl", vocabulary=LARGE) is None
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe{]\n")
    assert data.of_split(tmp_path / "train.jsonl", vocabulary=LARGE) is None


def test_raw_sources_are_read_by_the_rules_that_cleaning_will_have(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"messages": said("hello", "x" * 10)}, {"messages": said("hello", "x" * 500)}]
    text = "\n".join([*map(json.dumps, lines), "{broken", json.dumps({"nothing": 1})])
    (tmp_path / "chats.jsonl").write_text(text, "utf-8")
    found = of_sources(tmp_path, max_chars=256)
    assert found is not None
    assert (found.records, len(found.samples)) == (1, 1)
    assert of_sources(tmp_path, max_chars=4) is None


def of_sources(folder: Path, *, max_chars: int) -> Data | None:
    source: Artifact = foreign(folder, Kind.SOURCE)
    return data.of_sources([source], vocabulary=LARGE, min_turns=2, max_chars=max_chars, train=1.0)


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("objective", ["sft", "orpo", "dpo", "kto"])
def test_every_objective_has_a_course(objective: str) -> None:
    found = data.course(Data([Sample(10, 20, 30)] * 9, 9, 1, "here"), training(objective=objective, batch_size=4), seed=0)
    assert found.load.rows == (8 if objective in ("orpo", "dpo") else 4)
