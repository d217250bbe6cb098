"""The loss mask: exactly the assistant's words and the turn-end, whatever the words are."""

from pathlib import Path
from typing import Any

import pytest
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
