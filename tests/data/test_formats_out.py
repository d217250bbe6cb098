"""Every record that the dialogue filter passes leaves in every format and comes back."""

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.data.formats import PAIRS, VOTERS, read, vote
from llmkit.data.formats_out import TO
from llmkit.data.record import Message, Record

# No U+0000 (reading sets such lines aside), no lone surrogates (JSON has none), and never nothing but white space.
ANY = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9)
NASTY = st.sampled_from(
    ["human", "gpt", "system", 'a "b"\n', "\n\nHuman: x", "\\u0000", "{}", "null", "\ufeffx", "\u2028x", "x\r"]
)
TEXTS = st.one_of(NASTY, ANY.filter(str.strip))


def _dialogue(system: str | None, exchanges: list[tuple[str, str]]) -> list[Message]:
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return opening + [{"role": role, "content": text} for pair in exchanges for role, text in zip(roles, pair, strict=True)]


REPEATED = [("a", "b"), ("a", "b"), ("a", "b")]
RECORDS = st.builds(
    Record,
    st.builds(_dialogue, st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)),
    st.just("f.jsonl:1"),
    st.none() | TEXTS,
    st.sampled_from(sorted(PAIRS)),
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0]),
)


@pytest.mark.parametrize("name", TO)
@given(record=RECORDS)
@example(record=Record(_dialogue("a", REPEATED), "s", "a", "explicit"))
@example(record=Record(_dialogue(None, REPEATED), "s", "b"))
@example(record=Record(_dialogue("a", [("a", "a")]), "s", "c", "edit", 1.0))
def test_every_record_that_survives_comes_back_from_every_format(name: str, record: Record) -> None:
    raw = orjson.loads(orjson.dumps(TO[name](record)))
    assert read(raw, record.source) == record
    assert read(raw, record.source, prefer=vote([raw] * VOTERS), strict=True) == record


@given(record=RECORDS)
def test_a_canonical_line_comes_back_but_for_a_pair_of_no_origin(record: Record) -> None:
    origin = record.pair or ("" if record.rejected is None else "explicit")
    assert read(orjson.loads(record.to_json()), record.source) == record._replace(pair=origin)


CHAT = _dialogue("be kind", [("早", "早上好"), ("再见", "明天见")])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("messages", {"messages": CHAT}),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "早"},
                    {"from": "gpt", "value": "早上好"},
                    {"from": "human", "value": "再见"},
                    {"from": "gpt", "value": "明天见"},
                ],
                "system": "be kind",
            },
        ),
        (
            "alpaca",
            {"instruction": "再见", "input": "", "output": "明天见", "history": [["早", "早上好"]], "system": "be kind"},
        ),
    ],
)
def test_a_dialogue_is_written_as_other_trainers_read_it(name: str, raw) -> None:
    assert TO[name](Record(CHAT)) == raw
    assert TO[name](Record(CHAT, score=0.0)) == {**raw, "kto_tag": False}
    assert TO[name](Record(CHAT, score=3.5)) == {**raw, "score": 3.5}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (
            "messages",
            {
                "prompt": [{"role": "user", "content": "早"}],
                "chosen": [{"role": "assistant", "content": "早上好"}],
                "rejected": [{"role": "assistant", "content": "哼"}],
            },
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "早"}],
                "system": "",
                "chosen": {"from": "gpt", "value": "早上好"},
                "rejected": {"from": "gpt", "value": "哼"},
            },
        ),
        ("alpaca", {"instruction": "早", "input": "", "chosen": "早上好", "rejected": "哼", "history": [], "system": ""}),
    ],
)
def test_a_pair_is_written_as_other_trainers_read_it(name: str, raw) -> None:
    record = Record(_dialogue(None, [("早", "早上好")]), "s", "哼", "explicit")
    assert TO[name](record) == raw
    assert TO[name](record._replace(pair="generated")) == {**raw, "pair": "generated"}


def test_a_one_among_stars_is_no_thumb() -> None:
    record = Record([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "s", score=1.0)
    for to in TO.values():
        assert to(record)["kto_tag"] is True
        assert "kto_tag" not in to(record, thumbs=False)
        assert to(record, thumbs=False)["score"] == 1.0
