"""Raw objects of every supported shape, and of none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.formats import FORMATS, read
from llmkit.data.record import Record

USER, ANSWER, WORSE = "早上好", "你好！", "不"
DIALOGUE = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": "be kind"}
RAW_ANSWER, RAW_WORSE = {"role": "assistant", "content": ANSWER}, {"role": "assistant", "content": WORSE}


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": DIALOGUE},
        {"messages": [{**message, "name": "x"} for message in DIALOGUE], "id": 3},
        {"conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]},
        {"conversations": [{"from": "user", "value": USER}, {"from": "assistant", "value": ANSWER}], "system": ""},
        {"conversations": [{"from": "human", "value": USER}, {"from": "chatgpt", "value": ANSWER}]},
        {"turns": [USER, ANSWER]},
        {"turns": [{"text": USER}, {"text": ANSWER}]},
        {"turns": [{"text": USER, "role": "human"}, {"text": ANSWER, "role": "assistant"}]},
        {"turns": [{"text": USER}, ANSWER], "extra": None},
    ],
)
def test_the_same_dialogue_is_read_from_every_shape(raw) -> None:
    assert read(raw, "f:1") == Record(DIALOGUE, "f:1")


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": USER, "chosen": ANSWER, "rejected": WORSE},
        {"prompt": DIALOGUE[:1], "chosen": ANSWER, "rejected": WORSE},
        {"prompt": DIALOGUE[:1], "chosen": [RAW_ANSWER], "rejected": [RAW_WORSE]},
        {"prompt": DIALOGUE[:1], "chosen": RAW_ANSWER, "rejected": RAW_WORSE},
        {"prompt": USER, "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"prompt": DIALOGUE[:1], "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"messages": DIALOGUE, "rejected": WORSE},
    ],
)
def test_the_same_pair_is_read_from_every_preference_shape(raw) -> None:
    assert read(raw, "f:1") == Record(DIALOGUE, "f:1", WORSE)


def test_a_prompt_of_many_turns_is_kept_whole() -> None:
    prompt = [SYSTEM, *DIALOGUE]
    chosen, rejected = DIALOGUE, [DIALOGUE[0], RAW_WORSE]
    # The list repeats the prompt's user message, but continues the prompt: it ends on the assistant.
    more = {"role": "user", "content": "还有吗"}
    assert read({"prompt": [*prompt, more], "chosen": ANSWER, "rejected": WORSE}, "f:1") == Record(
        [*prompt, more, RAW_ANSWER], "f:1", WORSE
    )
    assert read({"prompt": [SYSTEM], "chosen": chosen, "rejected": rejected}, "f:1") == Record(prompt, "f:1", WORSE)
    assert read({"prompt": USER, "chosen": prompt, "rejected": [SYSTEM, *rejected]}, "f:1") == Record(prompt, "f:1", WORSE)


def test_a_system_text_beside_sharegpt_opens_the_dialogue() -> None:
    lines = [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]
    assert read({"conversations": lines, "system": "be kind"}, "s") == Record([SYSTEM, *DIALOGUE], "s")
    own = [{"from": "system", "value": "be kind"}, *lines]
    assert read({"conversations": own, "system": "be rude"}, "s") == Record([SYSTEM, *DIALOGUE], "s")


def test_turns_without_roles_alternate_after_a_system_turn() -> None:
    record = read({"turns": [{"role": "system", "text": "be kind"}, "1", "2", "3"]}, "s")
    assert isinstance(record, Record)
    assert [message["role"] for message in record.messages] == ["system", "user", "assistant", "user"]


def test_a_role_nobody_knows_is_left_to_the_filter() -> None:
    record = read({"messages": [{"role": "tool", "content": "3"}]}, "s")
    assert isinstance(record, Record)
    assert record.messages[0]["role"] == "tool"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "unknown shape (keys none)"),
        ({"text": "x"}, "unknown shape (keys 'text')"),
        ({"messages": "x"}, "messages must be a list, not str"),
        ({"messages": ["x"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content must be a string, not NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "must be a string, not list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role must be a string"),
        ({"messages": DIALOGUE, "rejected": [1]}, "rejected must be a string"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "conversations[0].value must be a string"),
        ({"turns": "x"}, "turns must be a list"),
        ({"turns": [3]}, "turns[0] must be a string"),
        ({"turns": [{"text": "x", "role": 3}]}, "turns[0].role"),
        ({"chosen": "x", "rejected": "y"}, "there is no prompt"),
        ({"prompt": 3, "chosen": "x", "rejected": "y"}, "prompt must be a list"),
        ({"prompt": "p", "chosen": 3, "rejected": "y"}, "chosen must be a list"),
        ({"prompt": "p", "chosen": "x", "rejected": None}, "rejected must be a list"),
        ({"chosen": [], "rejected": []}, "must each end"),
        ({"chosen": DIALOGUE, "rejected": [{"role": "user", "content": "z"}, RAW_WORSE]}, "differ before"),
    ],
)
def test_what_cannot_be_read_says_why(raw, reason: str) -> None:
    found = read(raw, "s")
    assert isinstance(found, str)
    assert reason in found


def test_an_unknown_shape_names_the_supported_ones() -> None:
    found = read({f"key{i}" * 50: 1 for i in range(100)}, "s")
    assert isinstance(found, str)
    assert all(form.shape in found for form in FORMATS)
    assert len(found) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "assistant", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["messages", "conversations", "turns", "prompt", "chosen", "rejected", "system", "x"])


@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_no_object_makes_a_reader_raise_and_what_it_reads_can_be_written(raw) -> None:
    found = read(raw, "s")
    assert isinstance(found, str) or Record.from_json(found.to_json()) == found
