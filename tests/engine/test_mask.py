"""The loss mask: exactly the assistant's words and the turn-end, whatever the words are."""

import re
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.engine import mask
from llmkit.engine.templates import ChatTemplate, resolve
from llmkit.errors import DataError, FidelityError, UsageError

TEXT = st.lists(
    st.one_of(
        st.sampled_from(["你好", "世界。", "Hello", " ", "\n", "\n\n", "\t", "👩‍👩‍👧", "🇨🇳", "é", "\u3000", "\x1c", "."]),
        st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<|im_end", "|im_end|>", "assistant\n"]),
        st.text(max_size=5),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def chatml(tiny_model: Path) -> ChatTemplate:
    return resolve("chatml", tiny_model)


def learnt(encoded: mask.Encoded, tokenizer: Any) -> str:
    ids = [token for token, kept in zip(encoded.input_ids, encoded.labels_mask, strict=True) if kept]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if number % 2 else "user", "content": turn} for number, turn in enumerate(turns)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TEXT, min_size=2, max_size=6))
def test_the_mask_covers_each_answer_and_its_turn_end_and_nothing_else(
    turns: list[str], tokenizer: Any, chatml: ChatTemplate
) -> None:
    encoded = mask.encode(chat(*turns), tokenizer, chatml)
    answers = [turn.strip() for turn in turns[1::2]]
    assert learnt(encoded, tokenizer) == "".join(f"{answer}<|im_end|>" for answer in answers)
    assert encoded.input_ids == tokenizer(tokenizer.decode(encoded.input_ids), add_special_tokens=False)["input_ids"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TEXT, min_size=2, max_size=4))
def test_records_that_spell_special_tokens_are_left_out_and_counted(
    turns: list[str], tokenizer: Any, chatml: ChatTemplate
) -> None:
    found = mask.encode_all([{"id": "a", "messages": chat(*turns)}], tokenizer, chatml, max_length=10_000)
    forged = any(token in turn for turn in turns for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    assert (len(found.items), found.forged) == ((0, 1) if forged else (1, 0))


def test_only_the_last_answer_of_a_pair_is_learnt(tokenizer: Any, chatml: ChatTemplate) -> None:
    record = {"messages": [*chat("one", "two", "three", "four"), {"role": "user", "content": "tail"}], "rejected": "five"}
    pair = mask.encode_pair(record, tokenizer, chatml)
    assert learnt(pair.chosen, tokenizer) == "four<|im_end|>"
    assert learnt(pair.rejected, tokenizer) == "five<|im_end|>"
    start = pair.chosen.labels_mask.index(True)
    assert pair.chosen.input_ids[:start] == pair.rejected.input_ids[:start]


def test_labels_are_ids_where_learnt(tokenizer: Any, chatml: ChatTemplate) -> None:
    encoded = mask.encode(chat("hi", "yes"), tokenizer, chatml)
    for token, label, kept in zip(encoded.input_ids, encoded.labels, encoded.labels_mask, strict=True):
        assert label == (token if kept else mask.IGNORED)


def test_overlong_records_are_counted_and_never_cut(tokenizer: Any, chatml: ChatTemplate) -> None:
    records = [{"id": str(size), "messages": chat("q", "word " * size)} for size in (1, 200)]
    found = mask.encode_all(records, tokenizer, chatml, max_length=100)
    assert (len(found.items), found.overlong) == (1, 1)
    paired = mask.encode_pairs([{**records[0], "rejected": "word " * 200}], tokenizer, chatml, max_length=100)
    assert (len(paired.items), paired.overlong) == (0, 1)


def test_a_conversation_without_an_answer_is_refused_by_name(tokenizer: Any, chatml: ChatTemplate) -> None:
    with pytest.raises(DataError, match="no assistant") as caught:
        mask.encode_all([{"id": "abc", "messages": chat("only a question")}], tokenizer, chatml, max_length=100)
    assert "abc" in caught.value.where


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}", DataError, "leaves out"),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}answer: {% endif %}",
            UsageError,
            "prompts for an answer in another way",
        ),
        (
            "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if m.content != 'two' }}{% endfor %}",
            FidelityError,
            "does not end",
        ),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            UsageError,
            "another way",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", FidelityError, "does not end"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{{ raise_exception('no') }}", DataError, "refuses"),
    ],
)
def test_a_template_that_cannot_carry_a_mask_is_a_clear_error(
    text: str, error: type[Exception], says: str, tokenizer: Any
) -> None:
    messages = [{"role": "system", "content": "sys"}, *chat("one", "two", "three", "four")]
    with pytest.raises(error, match=says):
        mask.encode(messages, tokenizer, ChatTemplate("odd", text, "<|im_end|>"))


def test_a_turn_end_that_is_many_tokens_fails_the_proof(tokenizer: Any) -> None:
    text = "{% for m in messages %}{{ m.content }}<stop>{% endfor %}"
    with pytest.raises(FidelityError, match="never stop"):
        mask.encode(chat("hello", "yes"), tokenizer, ChatTemplate("odd", text, "<stop>"))


def test_equal_answers_are_refused_by_name(tokenizer: Any, chatml: ChatTemplate) -> None:
    record = {"id": "abc", "messages": chat("one", "two"), "rejected": " two\n"}
    with pytest.raises(DataError, match="the same") as caught:
        mask.encode_pairs([record], tokenizer, chatml, max_length=100)
    assert "abc" in caught.value.where


def test_an_item_knows_its_record_and_which_answers_to_learn(tokenizer: Any, chatml: ChatTemplate) -> None:
    records = [{"id": name, "messages": chat("q", "first", "r", "second")} for name in "ab"]
    for loss_on, expected in (("all", "first<|im_end|>second<|im_end|>"), ("last", "second<|im_end|>")):
        found = mask.encode_all(records, tokenizer, chatml, max_length=100, loss_on=loss_on)
        assert [(item.record, learnt(item, tokenizer)) for item in found.items] == [("a", expected), ("b", expected)]


def test_many_records_are_encoded_as_each_alone(tokenizer: Any, chatml: ChatTemplate) -> None:
    records = [{"id": str(n), "messages": chat(*("word " * (n % 7 + k) for k in range(2 + n % 3 * 2)))} for n in range(600)]
    found = mask.encode_all(iter(records), tokenizer, chatml, max_length=1000)
    alone = [mask.encode(record["messages"], tokenizer, chatml) for record in records]
    assert [(one.input_ids, one.labels_mask) for one in found.items] == [(one.input_ids, one.labels_mask) for one in alone]


def published(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


QUIET = TEXT.map(lambda text: re.sub("[<>]", "", text).strip() + "x")  # what Qwen's templates leave as it is


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(QUIET, QUIET), min_size=1, max_size=3))
def test_the_mask_equals_that_of_generation_markers(turns: list[tuple[str, str]], tokenizer: Any) -> None:
    """The oracle is TRL's copy with {% generation %}, which also marks the line feed that follows the turn-end."""
    name = "qwen3_instruct_2507"
    messages = chat(*(text for exchange in turns for text in exchange))
    encoded = mask.encode(messages, tokenizer, ChatTemplate(name, published(name), "<|im_end|>"))
    marked = tokenizer.apply_chat_template(
        messages, chat_template=published(f"{name}_training"), return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids == list(marked["input_ids"])
    theirs = mask.Encoded(encoded.input_ids, [bool(kept) for kept in marked["assistant_masks"]])
    assert learnt(theirs, tokenizer).replace("<|im_end|>\n", "<|im_end|>") == learnt(encoded, tokenizer)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(QUIET, QUIET), min_size=1, max_size=3))
def test_qwen_3_trains_on_several_turns_by_its_own_template(turns: list[tuple[str, str]], tokenizer: Any) -> None:
    """It renders an empty think block before the last answer alone; each prompt is a prefix of it all the same."""
    template = ChatTemplate("qwen3", published("qwen3"), "<|im_end|>")
    messages = chat(*(text for exchange in turns for text in exchange))
    encoded = mask.encode(messages, tokenizer, template)
    whole = tokenizer.apply_chat_template(messages, chat_template=template.text, tokenize=True, return_dict=False)
    assert encoded.input_ids == list(whole)
    *earlier, last = (f"{answer}<|im_end|>" for _, answer in turns)
    assert learnt(encoded, tokenizer) == "".join([*earlier, "<think>\n\n</think>\n\n", last])
