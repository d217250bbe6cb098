"""What a client asks for is honoured, or refused by the name of its field."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.serve.http import asked
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.speaker import Wish

HELLO = [{"role": "user", "content": "hello"}]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed", "n", "stop", "stream", "stream_options"]


def chat(**fields: Any) -> asked.Asked:
    return asked.chat(json.dumps({"messages": HELLO, **fields}).encode())


def refused(**fields: Any) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    return caught.value


def test_every_field_of_a_wish_is_read() -> None:
    found = chat(model="m", max_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=["a", "b"], n=2, stream=True)
    assert (found.model, found.choices, found.stream, found.answers) == ("m", 2, True, 2)
    assert found.wish == Wish(max_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=("a", "b"))


def test_null_means_the_default() -> None:
    fields = dict.fromkeys(
        ["max_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "stream_options", "tools", "logprobs"]
    )
    assert chat(**fields) == chat()


def test_the_newer_name_of_the_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).wish.max_tokens == 7


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = chat(messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}])
    assert found.prompts == ([{"role": "system", "content": "be kind"}, {"role": "user", "content": "a\nb"}],)
    assert found.texts() == ["be kind", "a\nb"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("logprobs", True),
        ("logprobs", 0),
        ("top_logprobs", 3),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("top_k", 40),
        ("reasoning_effort", "high"),
        ("echo", True),
        ("functions", [{}]),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(field: str, value: object) -> None:
    error = refused(**{field: value})
    assert error.param == field
    assert field in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []),
        ("logprobs", False),
        ("response_format", {"type": "text"}),
        ("logit_bias", {}),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("top_k", -1),
        ("user", "me"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("parallel_tool_calls", True),
        ("nobody_knows", [1]),
    ],
)
def test_a_field_that_changes_nothing_is_no_hindrance(field: str, value: object) -> None:
    assert chat(**{field: value}) == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "assistant", "content": "", "tool_calls": [{}]}]),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("temperature", 2.1),
        ("temperature", True),
        ("top_p", 0),
        ("seed", 1.5),
        ("n", 9),
        ("n", 0),
        ("stop", ["a"] * 5),
        ("stop", [""]),
        ("stop", "x" * 257),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),  # without stream
    ],
)
def test_a_value_out_of_range_is_refused_by_its_field(field: str, value: object) -> None:
    error = refused(**{field: value})
    assert error.param is not None
    assert error.param.startswith(field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nul", b'{"messages": "\\ud800"}', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RefusalError) as caught:
        asked.chat(body)
    assert caught.value.status == 400


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=6), st.sampled_from(sorted(asked.PARSERS)))
def test_any_json_is_read_or_refused(fields: dict[str, Any], kind: Any) -> None:
    body = json.dumps({"messages": HELLO, "prompt": "hello", **fields}).encode()
    try:
        found = asked.PARSERS[kind](body)
    except RefusalError as error:
        refusal = error
    else:
        assert 1 <= found.answers <= asked.MAX_CHOICES
        assert found.texts()
        return
    assert refusal.status == 400
    assert refusal.body["error"]["message"]


def test_a_plain_completion_takes_texts_and_no_token_ids() -> None:
    found = asked.text(json.dumps({"prompt": ["a", "b"], "n": 2}).encode())
    assert (found.prompts, found.answers, found.wish.max_tokens, found.param) == (("a", "b"), 4, 16, "prompt")
    for wrong in ([1, 2], [[1]], 5, [], ["a"] * 9):
        with pytest.raises(RefusalError):
            asked.text(json.dumps({"prompt": wrong}).encode())


def test_what_fp32_cannot_divide_by_is_greedy() -> None:
    for heat in (0, 1e-300, 1e-45, 9e-6):
        assert chat(temperature=heat).wish.temperature == 0
    assert chat(temperature=1e-5, top_p=1e-300).wish == Wish(temperature=1e-5, top_p=1e-6)
