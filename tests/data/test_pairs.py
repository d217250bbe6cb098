"""Preference pairs: made from ratings and by shuffling, and reviewed."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.near import normalise
from llmkit.data.pairs import pair_by_rating, review, shuffle_rejected
from llmkit.data.record import Record
from llmkit.errors import DataError


def exchange(question: str, answer: str, rejected: str | None = None) -> Record:
    return Record([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "f:1", rejected)


RECORDS = st.lists(
    st.builds(
        exchange,
        st.text("abc", min_size=1),
        st.sampled_from(["Yes", "yes!", "No", "no.", "好", "Maybe"]),
        st.none() | st.just("bad"),
    ),
    min_size=2,
    max_size=12,
)


@given(RECORDS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_each_gets_anothers_answer_whatever_the_order(records, seed: int, rng: random.Random) -> None:
    if len({normalise(record.messages[-1]["content"]) for record in records}) < 2:
        return
    paired = list(shuffle_rejected(records, seed))
    answers = {record.messages[-1]["content"] for record in records}
    for before, after in zip(records, paired, strict=True):
        assert after.messages == before.messages
        if before.rejected is not None:
            assert after == before
        else:
            assert after.rejected in answers
            assert after.pair == "shuffle"
            assert normalise(after.rejected) != normalise(after.messages[-1]["content"])
    order = rng.sample(range(len(records)), len(records))
    assert list(shuffle_rejected([records[i] for i in order], seed)) == [paired[i] for i in order]


def test_the_seed_decides_who_gets_what() -> None:
    records = [exchange(f"question {i}", f"answer {i}") for i in range(50)]
    first, second = list(shuffle_rejected(records, 1)), list(shuffle_rejected(records, 2))
    assert first == list(shuffle_rejected(records, 1)) != second
    assert len({record.rejected for record in first}) > 20


def test_one_answer_for_all_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="same answer"):
        list(shuffle_rejected([exchange("a", "Yes"), exchange("b", "yes!")], 1))
    assert list(shuffle_rejected([], 1)) == []


def rated(question: str, answer: str, score: float | None, source: str = "f:1") -> Record:
    return exchange(question, answer)._replace(score=score, source=source)


RATED = st.lists(
    st.builds(
        rated,
        st.sampled_from(["Why?", "why", "How?", "怎么了？"]),
        st.sampled_from(["Yes", "yes!", "No", "好", "好 ", "Maybe", "I do not know"]),
        st.none() | st.sampled_from([0.0, 1.0, 2.5]),
        st.sampled_from(["f:1", "f:2"]),
    )
    | st.builds(exchange, st.sampled_from(["Why?", "How?"]), st.just("Yes"), st.just("bad")),
    max_size=16,
)


def said(records: list[Record]) -> list[bytes]:
    return sorted(record.to_json() for record in records)


@given(RATED)
def test_a_rated_pair_prefers_the_better_answer_to_the_same_prompt(records: list[Record]) -> None:
    made = [pair for pair in pair_by_rating(records).pairs if pair.pair == "rating"]
    for pair in made:
        assert pair._replace(rejected=None, pair="") in records
        losers = [one for one in records if one.messages[-1]["content"] == pair.rejected and one.rejected is None]
        prompt = normalise(pair.messages[0]["content"])
        same_prompt = [one for one in losers if normalise(one.messages[0]["content"]) == prompt]
        assert any(one.score is not None and one.score < pair.score for one in same_prompt)
        rivals = [one for one in records if normalise(one.messages[0]["content"]) == prompt and one.rejected is None]
        assert pair.score == max(one.score for one in rivals if one.score is not None)
    prompts = Counter(normalise(pair.messages[0]["content"]) for pair in made)
    assert max(prompts.values(), default=0) <= 3


@given(RATED)
def test_each_record_given_is_in_a_pair_or_unpaired(records: list[Record]) -> None:
    # Numbered, so that each record can be told from every other.
    records = [record._replace(source=f"f:{place}") for place, record in enumerate(records)]
    pairs, unpaired = pair_by_rating(records)
    given_pairs = [record for record in records if record.rejected is not None]
    assert [pair for pair in pairs if pair.pair != "rating"] == given_pairs
    chosen = {pair.source for pair in pairs if pair.pair == "rating"}
    free = len(records) - len(given_pairs) - len(chosen)
    made = len(pairs) - len(given_pairs)
    assert free - made <= unpaired <= free
    assert unpaired == free - made, "each rejected answer belongs to one pair"


@given(RATED, st.randoms(use_true_random=False))
def test_rated_pairs_do_not_depend_on_the_order(records: list[Record], rng: random.Random) -> None:
    pairs, unpaired = pair_by_rating(records)
    other = pair_by_rating(rng.sample(records, len(records)))
    assert (said(other.pairs), other.unpaired) == (said(pairs), unpaired)


def test_a_thumb_without_a_counterpart_makes_no_pair() -> None:
    lone = [rated("Why?", "Because.", 1), rated("How?", "Badly.", 0), rated("When?", "Now.", None), rated("When?", "Then.", 1)]
    assert pair_by_rating(lone) == ([], 4)


def test_one_answer_rated_twice_is_no_pair_with_itself() -> None:
    assert pair_by_rating([rated("Why?", "So.", 1), rated("Why?", " So. ", 0)]) == ([], 2)


def test_a_prompt_gives_three_pairs_with_its_worst_answers_and_the_best_take_turns() -> None:
    records = [rated("Why?", f"{letter}, since {score}", score) for score in range(6) for letter in "AB"]
    pairs, unpaired = pair_by_rating(records)
    assert sorted(str(pair.rejected)[-1] for pair in pairs) == ["0", "0", "1"]
    assert {pair.messages[-1]["content"] for pair in pairs} == {"A, since 5", "B, since 5"}
    assert unpaired == 12 - 5


def test_other_dialogues_lend_their_answers_to_a_single_one() -> None:
    lent = [exchange("b", "No"), exchange("c", "Yes")]
    assert [pair.rejected for pair in shuffle_rejected([exchange("a", "Yes")], 1, others=lent)] == ["No"]


ANSWERS = st.text("ab 好，。", max_size=12)


@given(st.lists(st.builds(exchange, st.just("q"), ANSWERS, ANSWERS), max_size=8), st.sampled_from([0.5, 1.0, 3.0]))
def test_a_review_drops_equal_pairs_only_and_finds_every_doubtful_one(records: list[Record], bound: float) -> None:
    reviewed = review(records, max_rejected_ratio=bound)
    differ = [one for one in records if one.messages[-1]["content"].split() != one.rejected.split()]
    assert reviewed.pairs == differ
    assert reviewed.equal == len(records) - len(differ)

    def windows(text: str) -> set[str]:
        text = normalise(text)
        return {text[i : i + 3] for i in range(len(text) - 2)} or {text}

    sides = [(windows(one.messages[-1]["content"]), windows(one.rejected)) for one in differ]
    assert reviewed.near_equal == sum(len(a & b) / len(a | b) >= 0.9 for a, b in sides)
    longer = [one for one in differ if len(one.rejected) > bound * max(1, len(one.messages[-1]["content"]))]
    assert said(reviewed.longer) == said(longer)


def test_a_correction_of_punctuation_is_nearly_equal_but_stays() -> None:
    reviewed = review([exchange("q", "好，谢谢。", "好谢谢")], max_rejected_ratio=3)
    assert (len(reviewed.pairs), reviewed.equal, reviewed.near_equal) == (1, 0, 1)
