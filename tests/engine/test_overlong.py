"""What becomes of a conversation that is too long: the system prompt, whole answers and every EOS survive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.engine import mask, overlong
from llmkit.engine.templates import ChatTemplate, Message, resolve
from llmkit.errors import DataError, UsageError

WORDS = st.lists(st.sampled_from(["word ", "你好", "👩‍👩‍👧", "🇨🇳", "e\u0301", "👍🏽", "\n"]), min_size=1, max_size=12).map(
    lambda words: "".join(words).strip() or "x"
)
LIMITS = st.integers(8, 120)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def chatml(tiny_model: Path) -> ChatTemplate:
    return resolve("chatml", tiny_model)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Messages told apart by a number, some with a system prompt, some with an unanswered end."""
    turns = [{"role": role, "content": draw(WORDS)} for role in ["user", "assistant"] * draw(st.integers(1, 4))]
    opening = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    end = [{"role": "user", "content": draw(WORDS)}] if draw(st.booleans()) else []
    numbered = [{**turn, "content": f"{turn['content']}#{number}"} for number, turn in enumerate([*turns, *end])]
    return [*opening, *numbered]


def answers(messages: Sequence[Message]) -> list[str]:
    return [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]


def learnt(item: mask.Encoded, tokenizer: Any) -> list[str]:
    text = tokenizer.decode([token for token, kept in zip(item.input_ids, item.labels_mask, strict=True) if kept])
    return [part + "<|im_end|>" for part in text.split("<|im_end|>")[:-1]]


def text_of(item: mask.Encoded, tokenizer: Any) -> str:
    return str(tokenizer.decode(item.input_ids))


def encoded(messages: list[Message], tokenizer: Any, template: ChatTemplate, **how: Any) -> mask.Encodings[mask.Encoded]:
    return mask.encode_all([{"id": "a", "messages": messages}], tokenizer, template, **how)


def fits(messages: Sequence[Message], tokenizer: Any, template: ChatTemplate, limit: int) -> bool:
    return len(mask.encode(messages, tokenizer, template).input_ids) <= limit


@settings(max_examples=150, deadline=None)
@given(messages=conversations(), limit=LIMITS)
def test_truncating_keeps_the_newest_exchanges_that_fit(
    messages: list[Message], limit: int, tokenizer: Any, chatml: ChatTemplate
) -> None:
    found = encoded(messages, tokenizer, chatml, max_length=limit, on_overlong="truncate_left")
    if fits(messages, tokenizer, chatml, limit):
        assert (found.truncated, found.overlong, len(found.items)) == (0, 0, 1)
        return
    assert found.truncated + found.overlong == 1
    assert len(found.items) == found.truncated
    for item in found.items:
        assert len(item.input_ids) <= limit
        kept = learnt(item, tokenizer)
        assert kept == answers(messages)[-len(kept) :]
        assert text_of(item, tokenizer).endswith("<|im_end|>\n")
        if messages[0]["role"] == "system":
            assert messages[0]["content"] in text_of(item, tokenizer)


@settings(max_examples=100, deadline=None)
@given(messages=conversations(), limit=LIMITS)
def test_no_exchange_goes_that_would_have_fit(
    messages: list[Message], limit: int, tokenizer: Any, chatml: ChatTemplate
) -> None:
    """Against trying every number of exchanges, from most to least."""
    found = encoded(messages, tokenizer, chatml, max_length=limit, on_overlong="truncate_left")
    system = [message for message in messages if message["role"] == "system"]
    turns = messages[len(system) :]
    turns = turns[: len(turns) // 2 * 2]
    tails = [turns[start:] for start in range(0, len(turns), 2)]
    best = next((tail for tail in tails if fits([*system, *tail], tokenizer, chatml, limit)), None)
    if best is not None:
        assert learnt(found.items[0], tokenizer) == answers(best)
    elif found.items:  # cut inside the last exchange
        assert learnt(found.items[0], tokenizer) == answers(tails[-1])


@settings(max_examples=150, deadline=None)
@given(messages=conversations(), limit=LIMITS)
def test_splitting_learns_every_answer_once(messages: list[Message], limit: int, tokenizer: Any, chatml: ChatTemplate) -> None:
    found = encoded(messages, tokenizer, chatml, max_length=limit, on_overlong="split")
    assert all(len(item.input_ids) <= limit for item in found.items)
    kept = [answer for item in found.items for answer in learnt(item, tokenizer)]
    system = [message for message in messages if message["role"] == "system"]
    turns = messages[len(system) :]
    alone = [turns[start : start + 2] for start in range(0, len(turns) - 1, 2)]
    fitting = [pair for pair in alone if fits([*system, *pair], tokenizer, chatml, limit)]
    assert kept == [answer for pair in fitting for answer in answers(pair)]
    assert found.overlong == (len(fitting) < len(alone))
    assert found.split == (len(found.items) > 1)
    for item in found.items:
        assert all(message["content"] in text_of(item, tokenizer) for message in system)


def test_a_question_is_cut_at_whole_characters(tokenizer: Any, chatml: ChatTemplate) -> None:
    family, question = "👩‍👩‍👧", "start " + "👩‍👩‍👧" * 30
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    lengths = set()
    for limit in range(60, 100):
        (item,) = encoded(messages, tokenizer, chatml, max_length=limit, on_overlong="truncate_left").items
        kept = text_of(item, tokenizer).removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        assert kept
        assert kept.count(family) * len(family) == len(kept)
        lengths.add(len(kept))
    assert len(lengths) > 1


@given(st.lists(st.sampled_from(["a", "中", "👩‍👩‍👧", "🇨🇳", "e\u0301", "👍🏽", "❤️", "\r\n", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣"]), max_size=10))
def test_characters_begin_where_a_reader_sees_them_begin(letters: list[str]) -> None:
    starts = overlong.character_starts("".join(letters))
    assert starts == [sum(map(len, letters[:index])) for index in range(len(letters))]


def test_the_last_answer_alone_is_kept_when_it_alone_is_learnt(tokenizer: Any, chatml: ChatTemplate) -> None:
    turns = [{"role": role, "content": f"{'word ' * 5}{n}"} for n, role in enumerate(["user", "assistant"] * 4)]
    limit = len(mask.encode(turns[-2:], tokenizer, chatml).input_ids)
    for how in ("split", "truncate_left"):
        found = encoded(turns, tokenizer, chatml, max_length=limit, on_overlong=how, loss_on="last")
        assert (found.truncated, found.split, found.overlong, len(found.items)) == (1, 0, 0, 1)
        assert learnt(found.items[0], tokenizer) == answers(turns)[-1:]


def test_erring_names_the_record_its_tokens_and_the_limit(tokenizer: Any, chatml: ChatTemplate) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 50}]
    size = len(mask.encode(messages, tokenizer, chatml).input_ids)
    assert encoded(messages, tokenizer, chatml, max_length=size, on_overlong="error").items
    with pytest.raises(DataError, match=f"{size} tokens are over max_length {size - 1}") as caught:
        encoded(messages, tokenizer, chatml, max_length=size - 1, on_overlong="error")
    assert caught.value.where == "record a"


@settings(max_examples=60, deadline=None)
@given(messages=conversations(), rejected=WORDS, limit=LIMITS)
def test_both_sides_of_a_pair_are_cut_alike(
    messages: list[Message], rejected: str, limit: int, tokenizer: Any, chatml: ChatTemplate
) -> None:
    record = {"id": "a", "messages": messages, "rejected": rejected}
    found = mask.encode_pairs([record], tokenizer, chatml, max_length=limit, on_overlong="truncate_left")
    for pair in found.items:
        start = pair.chosen.labels_mask.index(True)
        assert pair.chosen.input_ids[:start] == pair.rejected.input_ids[:start]
        assert pair.rejected.labels_mask.index(True) == start
        assert max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) <= limit
        assert learnt(pair.chosen, tokenizer) == answers(messages)[-1:]
        assert learnt(pair.rejected, tokenizer) == [rejected.strip() + "<|im_end|>"]
    assert len(found.items) + found.overlong == 1


def test_pairs_are_not_split(tokenizer: Any, chatml: ChatTemplate) -> None:
    with pytest.raises(UsageError, match="cannot be split"):
        mask.encode_pairs([], tokenizer, chatml, max_length=10, on_overlong="split")
