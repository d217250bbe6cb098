"""Raw objects of every supported shape, and of none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.formats import FORMATS, NAMES, VOTERS, prompt_text, read, vote
from llmkit.data.record import Record

USER, ANSWER, WORSE = "早上好", "你好！", "不"
DIALOGUE = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": "be kind"}
RAW_ANSWER, RAW_WORSE = {"role": "assistant", "content": ANSWER}, {"role": "assistant", "content": WORSE}
GPT_ANSWER, GPT_WORSE = {"from": "gpt", "value": ANSWER}, {"from": "gpt", "value": WORSE}


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
        {"messages": [{"content": message["content"], "role": message["role"]} for message in DIALOGUE]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": USER}]}, {**RAW_ANSWER, "tool_calls": None}]},
        {"messages": DIALOGUE, "rejected": None, "system": " ", "chosen": None, "pair": None, "score": None},
        {"messages": [{"from": "human", "value": USER}, GPT_ANSWER]},
        {"conversations": DIALOGUE},
        {"instruction": USER, "output": ANSWER},
        {"instruction": USER, "input": "", "output": ANSWER, "system": "", "history": []},
        {"instruction": "", "input": USER, "output": ANSWER, "history": None},
        {"query": USER, "response": ANSWER, "history": "", "system": None},
        {"prompt": USER, "response": ANSWER},
        {"prompt": USER, "completion": ANSWER},
        {"prompt": DIALOGUE[:1], "completion": [RAW_ANSWER], "label": None},
        {"prompt": USER, "original": ANSWER, "edited": ANSWER},
        {"prompt": USER, "original": ANSWER, "edited": " "},
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
        {"messages": DIALOGUE, "rejected_response": WORSE},
        {"query": USER, "response": ANSWER, "rejected_response": WORSE},
        {"conversations": [{"from": "human", "value": USER}], "chosen": GPT_ANSWER, "rejected": GPT_WORSE},
        {"conversations": [{"from": "human", "value": USER}], "chosen": ANSWER, "rejected": WORSE},
        {"conversations": [{"from": "human", "value": USER}, GPT_ANSWER], "chosen": ANSWER, "rejected": WORSE},
        {"messages": DIALOGUE, "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"instruction": USER, "input": "", "chosen": ANSWER, "rejected": WORSE},
        {"question": USER, "chosen": ANSWER, "rejected": WORSE, "system": None},
        {"prompt": USER, "messages": DIALOGUE, "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
    ],
)
def test_the_same_pair_is_read_from_every_preference_shape(raw) -> None:
    assert read(raw, "f:1") == Record(DIALOGUE, "f:1", WORSE, "explicit")


@pytest.mark.parametrize(
    "raw",
    [
        {"instruction": "还有吗", "output": "没有", "history": [[USER, ANSWER]], "system": "be kind"},
        {"query": "还有吗", "response": "没有", "history": [[USER, ANSWER]], "system": "be kind"},
        {"prompt": [SYSTEM, *DIALOGUE, {"role": "user", "content": "还有吗"}], "completion": "没有"},
        {
            "messages": [*DIALOGUE, {"role": "human", "content": "还有吗"}, {"role": "bot", "content": "没有"}],
            "system": "be kind",
        },
    ],
)
def test_a_history_and_a_system_text_stand_before_the_question(raw) -> None:
    more = [{"role": "user", "content": "还有吗"}, {"role": "assistant", "content": "没有"}]
    assert read(raw, "f:1") == Record([SYSTEM, *DIALOGUE, *more], "f:1")


def test_alpaca_input_follows_its_instruction_on_a_line_of_its_own() -> None:
    record = read({"instruction": "Translate", "input": "hi", "output": ANSWER}, "s")
    assert isinstance(record, Record)
    assert record.messages[0]["content"] == "Translate\nhi"


@pytest.mark.parametrize(
    ("raw", "score"),
    [
        ({"conversations": [{"from": "human", "value": USER}, GPT_ANSWER], "kto_tag": True}, 1.0),
        ({"messages": DIALOGUE, "kto_tag": False}, 0.0),
        ({"instruction": USER, "output": ANSWER, "kto_tag": "true"}, 1.0),
        ({"prompt": USER, "completion": ANSWER, "label": False}, 0.0),
        ({"prompt": DIALOGUE[:1], "completion": [RAW_ANSWER], "label": True}, 1.0),
        ({"prompt": USER, "completion": ANSWER, "label": 3}, None),
        ({"messages": DIALOGUE, "score": 4}, 4.0),
    ],
)
def test_a_thumb_in_the_line_becomes_the_score(raw, score: float | None) -> None:
    assert read(raw, "s") == Record(DIALOGUE, "s", score=score)


def test_what_llmkit_writes_it_reads_back() -> None:
    import orjson

    for record in (Record(DIALOGUE, "s", WORSE, "generated", 3.5), Record(DIALOGUE, "s", score=-1.0), Record(DIALOGUE, "s")):
        assert read(orjson.loads(record.to_json()), "s") == record
    assert read({"messages": DIALOGUE, "rejected": WORSE, "pair": "zh-en"}, "s") == Record(DIALOGUE, "s", WORSE, "explicit")


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *((word, 1.0) for word in (True, "up", "Thumbs Up", "thumbs_up", "like", "true", 1, "1")),
        *((word, 0.0) for word in (False, "down", "thumbs-down", "dislike", " False ", 0, "0.0")),
        *((number, float(number)) for number in (4, 4.5, -2, "4.5", " 5 ")),
        *(
            (odd, None)
            for odd in (None, "", "good", [], {"x": 1}, float("nan"), float("inf"), "nan", "1e999", "9" * 10**6, 10**400)
        ),
    ],
)
def test_a_score_field_is_read_as_a_number_a_thumb_or_nothing(value, score: float | None) -> None:
    raw = {"messages": DIALOGUE, "kto_tag": True, "meta": {"rating": value}}
    assert read(raw, "s", score_field="meta.rating") == Record(DIALOGUE, "s", score=score)
    assert read({**raw, "meta.rating": value}, "s", score_field="meta.rating") == Record(DIALOGUE, "s", score=score)
    for absent in ("rating", "meta.score", "kto_tag.x", ""):
        assert read(raw, "s", score_field=absent) == Record(DIALOGUE, "s")


def test_an_edited_answer_is_chosen_over_the_one_it_corrects() -> None:
    edited = Record(DIALOGUE, "s", WORSE, "edit")
    raw = {"messages": [DIALOGUE[0], RAW_WORSE], "corrected": ANSWER}
    assert read({"prompt": USER, "original": WORSE, "edited": ANSWER}, "s") == edited
    assert read({"prompt": DIALOGUE[:1], "original": WORSE, "edited": ANSWER}, "s") == edited
    assert read(raw, "s", edited_field="corrected") == edited
    assert read({**raw, "rejected": "other"}, "s", edited_field="corrected") == edited
    assert raw["messages"] == [DIALOGUE[0], RAW_WORSE]


@pytest.mark.parametrize("text", [None, "", "  ", 3, WORSE])
def test_an_edit_that_changes_nothing_makes_no_pair(text) -> None:
    raw = {"messages": [DIALOGUE[0], RAW_WORSE], "corrected": text}
    assert read(raw, "s", edited_field="corrected") == Record([DIALOGUE[0], RAW_WORSE], "s")


def test_an_edit_of_an_empty_answer_is_an_answer_and_no_pair() -> None:
    raw = {"messages": [DIALOGUE[0], {"role": "assistant", "content": None}], "corrected": ANSWER}
    assert read(raw, "s", edited_field="corrected") == Record(DIALOGUE, "s")
    assert read({"messages": DIALOGUE[:1], "corrected": ANSWER}, "s", edited_field="corrected") == Record(DIALOGUE[:1], "s")


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    "raw",
    [
        {
            "messages": [
                DIALOGUE[0],
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "3"},
                RAW_ANSWER,
            ]
        },
        {"messages": [DIALOGUE[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, RAW_ANSWER]},
        {
            "messages": [
                DIALOGUE[0],
                {"role": "assistant", "content": None, "function_call": CALL["function"]},
                {"role": "function", "name": "weather", "content": "3"},
                RAW_ANSWER,
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": USER},
                {"from": "function_call", "value": '{"name": "weather"}'},
                {"from": "observation", "value": "3"},
                GPT_ANSWER,
            ],
            "tools": "[]",
        },
    ],
)
def test_calls_and_their_results_keep_roles_of_their_own(raw) -> None:
    record = read(raw, "s")
    assert isinstance(record, Record)
    assert [(one["role"], one["content"]) for one in record.messages] == [
        ("user", USER),
        ("tool_call", ""),
        ("tool", "3"),
        ("assistant", ANSWER),
    ]


def test_what_is_said_besides_a_call_is_kept() -> None:
    record = read({"messages": [{**RAW_ANSWER, "tool_calls": [CALL]}]}, "s")
    assert isinstance(record, Record)
    assert record.messages == [{"role": "tool_call", "content": ANSWER}]
    assert read({"messages": [{**RAW_ANSWER, "tool_calls": []}]}, "s") == Record([RAW_ANSWER], "s")


def test_null_reads_as_nothing_said_and_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}, "c"]
    record = read({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": parts}]}, "s")
    assert isinstance(record, Record)
    assert [message["content"] for message in record.messages] == ["", "a\nb\nc"]


def test_a_prompt_of_many_turns_is_kept_whole() -> None:
    prompt, more = [SYSTEM, *DIALOGUE], {"role": "user", "content": "还有吗"}
    answers = {"chosen": ANSWER, "rejected": WORSE}
    assert read({"prompt": [*prompt, more], **answers}, "f:1") == Record([*prompt, more, RAW_ANSWER], "f:1", WORSE, "explicit")


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [SYSTEM], "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"prompt": [SYSTEM, DIALOGUE[0]], "chosen": DIALOGUE, "rejected": [DIALOGUE[0], RAW_WORSE]},
        {"prompt": USER, "chosen": [SYSTEM, *DIALOGUE], "rejected": [SYSTEM, DIALOGUE[0], RAW_WORSE]},
        {"prompt": USER, "system": "be kind", "chosen": DIALOGUE, "rejected": WORSE},
        {"prompt": USER, "system": "be rude", "chosen": [SYSTEM, *DIALOGUE], "rejected": [SYSTEM, DIALOGUE[0], RAW_WORSE]},
        {"conversations": DIALOGUE[:1], "system": "be kind", "chosen": GPT_ANSWER, "rejected": GPT_WORSE},
    ],
)
def test_the_system_text_of_a_pair_may_stand_apart_from_its_prompt(raw) -> None:
    assert read(raw, "f:1") == Record([SYSTEM, *DIALOGUE], "f:1", WORSE, "explicit")


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
    record = read({"messages": [{"role": "narrator", "content": "3"}]}, "s")
    assert isinstance(record, Record)
    assert record.messages[0]["role"] == "narrator"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "unknown shape (keys none)"),
        ({"text": "x"}, "unknown shape (keys 'text')"),
        ({"messages": "x"}, "messages must be a list, not str"),
        ({"messages": ["x"]}, "messages[0] must be an object"),
        ({"messages": None}, "messages must be a list, not NoneType"),
        ({"messages": [{"role": "user", "text": "x"}]}, "messages[0].content must be a string, and there is none"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content must be a string, not dict"),
        ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role must be a string, not list"),
        ({"messages": [["role", "content"]]}, "messages[0] must be an object, not list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0] is no text but of type 'text'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0] is no text but of type 'image_url'; only text can be read",
        ),
        ({"messages": [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]}, "is no text but of type list"),
        ({"messages": [{"role": "user", "content": [3]}]}, "is no text but of type 'int'"),
        ({"messages": [{"content": "x"}]}, "messages[0].role must be a string"),
        ({"messages": DIALOGUE, "rejected": [1]}, "rejected must be a string"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "conversations[0].value must be a string, and there is none"),
        ({"turns": "x"}, "turns must be a list"),
        ({"turns": [3]}, "turns[0] must be a string"),
        ({"turns": [{"text": "x", "role": 3}]}, "turns[0].role"),
        ({"chosen": "x", "rejected": "y"}, "there is no prompt"),
        ({"instruction": 3, "output": "x"}, "instruction must be a list"),
        ({"instruction": "x", "output": ["y"]}, "output must be a string, not list"),
        ({"instruction": "x", "output": None}, "output must be a string, not NoneType"),
        ({"query": "x", "response": "y", "history": [["a"]]}, "history[0] must be [question, answer]"),
        ({"query": "x", "response": "y", "history": [["a", None]]}, "history[0] must be [question, answer]"),
        ({"query": "x", "response": "y", "history": "a"}, "history must be a list"),
        ({"prompt": "x", "original": "y", "edited": 3}, "edited must be a string"),
        ({"prompt": "x", "completion": 3}, "completion must be a list"),
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
    assert len(found) < 800


def test_the_vote_goes_to_what_most_of_the_first_thousand_objects_are() -> None:
    pair, alpaca = {"prompt": USER, "chosen": ANSWER, "rejected": WORSE}, {"instruction": USER, "output": ANSWER}
    assert vote([]) is None
    assert vote([{"x": 1}] * 9) is None
    assert vote([{"x": 1}] * 9 + [alpaca]) == "alpaca"
    assert vote([alpaca, pair, {"messages": []}, pair]) == "preference"
    assert vote([alpaca, pair]) == "preference"
    assert vote([{"messages": []}] * (VOTERS // 2 + 1) + [pair] * VOTERS) == "messages"
    assert vote([{**pair, "messages": DIALOGUE, "rejected": None}, *[{**pair, "messages": DIALOGUE}] * 2]) == "preference"
    assert vote({"messages": []} for _ in iter(int, 1)) == "messages"


BOTH = {"messages": DIALOGUE, "instruction": "x", "output": "y", "history": None}


def test_the_preferred_format_is_used_where_its_keys_are_there() -> None:
    assert read(BOTH, "s") == Record(DIALOGUE, "s")
    alpaca = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert read(BOTH, "s", prefer="alpaca") == Record(alpaca, "s")
    assert read(BOTH, "s", prefer="alpaca", strict=True) == Record(alpaca, "s")
    assert read({**BOTH, "output": None}, "s", prefer="alpaca") == Record(DIALOGUE, "s")


def test_a_strict_format_says_which_keys_are_missing() -> None:
    assert read({**BOTH, "query": None}, "s", prefer="swift", strict=True) == "not swift: no 'query', 'response'"
    assert read({"messages": DIALOGUE}, "s", prefer="preference", strict=True) == "not preference: no 'chosen', 'rejected'"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"question": "1 + 1?", "answer": "#### 2"}, "1 + 1?"),
        ({"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "return 1", "test": "x"}, "def f():"),
        (
            {"Question": "最大的行星？", "A": "地球", "B": "木星", "C": "火星", "D": "金星", "Answer": "B"},
            "最大的行星？\n地球\n木星\n火星\n金星",
        ),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "q\nx\ny"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}, "q\nx\ny"),
        ({"question": "q", "options": {"A": "x", "B": "y"}}, "q\nx\ny"),
        ({"context": "a long passage", "question": "q", "answers": {"text": ["z"]}}, "a long passage\nq"),
        ({"instruction": "i", "input": "x"}, "i\nx"),
        ({"instruction": "i", "input": "x", "output": "o"}, "i\nx"),
        ({"input": "x", "target": "y"}, "x"),
        ({"text": "x"}, "x"),
        ({"query": "x"}, "x"),
        ({"prompt": DIALOGUE[:1]}, USER),
        ({"prompt": USER, "completion": ANSWER}, USER),
        ({"messages": [SYSTEM, *DIALOGUE, *DIALOGUE]}, f"{USER}\n{USER}"),
        ({"conversations": [{"from": "human", "value": USER}]}, USER),
        ({"prompt": USER, "chosen": ANSWER, "rejected": WORSE}, USER),
        ({"messages": 3, "question": "q"}, "q"),
        ({"question": " ", "text": "x"}, "x"),
        ({"question": " "}, None),
        ({"messages": [SYSTEM]}, None),
        ({"answer": "x"}, None),
        ({}, None),
    ],
)
def test_the_prompt_of_an_evaluation_row_is_all_that_its_user_says(raw, text: str | None) -> None:
    assert prompt_text(raw) == text


def test_nesting_a_thousand_deep_is_no_danger() -> None:
    import orjson

    deep = orjson.loads("[" * 1000 + "]" * 1000)
    part = {"type": deep, "text": deep}
    for value in (deep, [deep], [part], [{"role": deep, "content": deep}], [{"role": "user", "content": [part]}]):
        for form in FORMATS:
            raw = dict.fromkeys([*form.keys, "history", "score", "pair", "kto_tag", "question", "choices"], value)
            assert isinstance(read(raw, "s", score_field="score", edited_field="pair"), str)
            assert prompt_text(raw) is None


def test_a_prompt_as_long_as_its_answer_is_compared_in_linear_time() -> None:
    prompt, answer = [DIALOGUE[0]] * 100_000, [DIALOGUE[0]] * 200_000
    start = time.perf_counter()
    assert isinstance(read({"prompt": prompt, "chosen": answer, "rejected": answer}, "s"), str)
    assert time.perf_counter() - start < 3


INNER = ["role", "content", "from", "value", "text", "type", "tool_calls", "function_call", "x"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["user", "assistant", "function_call", "tool", "text", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *sorted({key for form in FORMATS for key in form.keys}),
        "system",
        "history",
        "input",
        "label",
        "kto_tag",
        "score",
        "pair",
        "x",
    ]
)


@given(st.dictionaries(KEYS, JSON, max_size=6), st.none() | st.sampled_from(NAMES), st.booleans())
def test_no_object_makes_a_reader_raise_and_what_it_reads_can_be_written(raw, prefer: str | None, strict: bool) -> None:
    found = read(raw, "s", prefer=prefer, strict=strict, score_field="x", edited_field="input")
    assert isinstance(found, str) or Record.from_json(found.to_json()) == found
    assert prompt_text(raw) != ""
    vote([raw])


def test_a_pair_among_dialogues_stays_a_pair_and_a_thumb_may_be_a_word() -> None:
    pair = {
        "conversations": [{"from": "human", "value": USER}],
        "chosen": {"from": "gpt", "value": ANSWER},
        "rejected": {"from": "gpt", "value": WORSE},
    }
    found = read(pair, "s", prefer="sharegpt")
    assert isinstance(found, Record)
    assert found.rejected == WORSE
    for label, score in ((True, 1.0), ("False", 0.0), (1, 1.0), (0, 0.0), ("no idea", None), (5, None)):
        rated = read({"prompt": USER, "completion": ANSWER, "label": label}, "s")
        assert isinstance(rated, Record)
        assert rated.score == score
