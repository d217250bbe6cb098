"""Tensors from a config.json: against published counts, against transformers, and against what a stranger may write."""

import time
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError, LlmkitError
from llmkit.planning import shapes
from llmkit.planning.shapes import Shape
from tests.planning.shared import COPIES, copy_of, shape_of

# As the hub counts the tensors of the published weights.
PUBLISHED = {
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "Llama-2-7b": 6_738_415_616,
    "Llama-2-13b": 13_015_864_320,
    "Llama-2-70b": 68_976_648_192,
    "Meta-Llama-3-8B": 8_030_261_248,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", COPIES)
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    assert shape_of(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", COPIES)
def test_the_table_and_transformers_agree_on_every_tensor_and_size(name: str) -> None:
    ours, theirs = shape_of(name), by_transformers(copy_of(name))
    assert {(one.name, one.shape, one.kind) for one in ours.tensors} == {
        (one.name, one.shape, one.kind) for one in theirs.tensors
    }
    names = [one.name for one in fields(Shape) if one.name not in ("tensors", "family", "computed")]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}])
def test_biases_and_ties_count_as_transformers_has_them(changes: dict[str, Any]) -> None:
    raw = {**copy_of("SmolLM2-135M"), "tie_word_embeddings": False, **changes}
    assert shapes.of_config(raw, where="here").parameters == by_transformers(raw).parameters


def test_an_architecture_that_is_not_in_the_table_comes_from_transformers_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    raw = {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "hidden_size": 64, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 1000}
    first = shapes.of_config(raw, where="here")
    assert first.family == ""
    # Query, key, value and output; gate, up and down; embedding and head; its norms hold no weights.
    assert first.parameters == 2 * (4 * 64 * 64 + 3 * 64 * 128) + 2 * 64 * 1000

    from llmkit.engine import shapes as slow

    monkeypatch.setattr(slow, "describe", lambda *_, **__: pytest.fail("it was asked again"))
    assert shapes.of_config(raw, where="here") == first


ODD: list[dict[str, Any]] = [
    {},
    {"architectures": []},
    {"architectures": ["Nothing"]},
    {"architectures": ["Nothing"], "model_type": "nothing"},
    {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "num_hidden_layers": 10**9},
    {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "hidden_size": 10**30},
    {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "hidden_size": -4},
    {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "hidden_size": float("nan")},
    {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 10**8},
    {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "auto_map": {"AutoConfig": "evil.Config"}, "vocab_size": "x"},
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 10**12},
]


@pytest.mark.parametrize("raw", ODD, ids=range(len(ODD)))
def test_an_impossible_config_is_refused_soon_and_in_words(raw: dict[str, Any]) -> None:
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        shapes.of_config(raw, where="config.json")
    assert caught.value.next
    assert caught.value.code
    assert time.perf_counter() - started < 20


_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5), st.just([]))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["gemma-2-9b", "gemma-3-270m", "Llama-2-7b", "Phi-3-mini-4k-instruct"]), st.data())
def test_whatever_one_key_holds_there_is_a_shape_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    raw = copy_of(name)
    # Other architectures take transformers' way, which the cases above try: it is slower.
    key = data.draw(st.sampled_from(sorted(set(raw) - {"architectures", "attention_bias", "mlp_bias"})))
    raw[key] = data.draw(_VALUES)
    try:
        found = shapes.of_config(raw, where="config.json")
    except LlmkitError:
        return
    assert 0 < found.parameters < 10**20


def by_transformers(raw: dict[str, Any]) -> Shape:
    from llmkit.engine import shapes as slow

    return shapes.of_plain(slow.describe(raw, where="here"))
