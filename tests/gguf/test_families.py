"""Every family: llama.cpp computes what transformers computes, and the file gives the weights back."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError, UsageError
from llmkit.gguf import architectures
from llmkit.gguf.architectures import ARCHITECTURES, Transform
from llmkit.gguf.convert import export
from llmkit.gguf.runtime import LlamaServer
from tests.gguf.families import FAMILIES, load_hf

ModelDirs = dict[str, tuple[Path, str]]
POSITIONS = 64
# Beyond Gemma's windows, Llama 3's and YaRN's original contexts; LongRoPE has factors for up to 256 tokens and beyond.
PLACES = [*((family, 1, 256) for family in FAMILIES), ("phi3_long", 257, 512)]


@pytest.mark.parametrize(("family", "first", "context"), PLACES)
def test_the_next_token_has_the_probabilities_of_the_model(
    family: str, first: int, context: int, exported: Callable[..., Path], model_dirs: ModelDirs
) -> None:
    model = load_hf(model_dirs[family][0])
    lengths = range(first, first + POSITIONS)
    ids = torch.randint(8, 300, (lengths[-1],), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    worst = 0.0
    with LlamaServer(exported(family, "f32"), threads=1, context=context, exact_attention=True) as server:
        for length in lengths:
            found = server.next_log_probabilities(ids[:length], top=model.config.vocab_size)
            assert len(found) == model.config.vocab_size
            worst = max(worst, _difference(found, expected[length - 1]))
    assert worst <= (1e-2 if family.startswith("gemma") else 1e-4)
    assert float(expected.max(-1).values.min() - expected.min(-1).values.max()) > 1  # else a constant answer would pass


def _difference(found: dict[int, float], expected: torch.Tensor) -> float:
    values = torch.tensor([found[index] for index in range(len(expected))])
    return float((values - expected)[expected > -20].abs().max())


def _config(**changes: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    plain = {**sizes, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, **changes}
    return architectures.parse({"architectures": ["LlamaForCausalLM"], **plain}, where="test")


TRANSFORMS = {rule.transform for entry in ARCHITECTURES for rule in entry.rules if rule.transform is not None}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_change_of_a_tensor_can_be_undone(data: st.DataObject) -> None:
    transform = data.draw(st.sampled_from(sorted(TRANSFORMS, key=id)))
    heads, half, columns = (data.draw(st.integers(1, 5)) for _ in range(3))
    metadata = {"attention.head_count": heads, "attention.head_count_kv": heads}
    shape = data.draw(st.sampled_from([(heads * 2 * half,), (heads * 2 * half, columns)]))
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    if transform.moves:
        kind = data.draw(st.sampled_from([np.uint16, np.float16, np.float32]))
        weight = seed.integers(0, 60_000, shape, np.uint16).astype(kind)
        _undone(transform, weight, metadata, exactly=True)
    else:
        _undone(transform, seed.normal(size=shape).astype(np.float32), metadata, exactly=False)


def _undone(transform: Transform, weight: Any, metadata: Any, *, exactly: bool) -> None:
    there = transform.forward(weight, metadata)
    back = transform.backward(there, metadata)
    assert there.dtype == back.dtype == weight.dtype
    assert there.shape == weight.shape
    np.testing.assert_allclose(back, weight, rtol=0, atol=0 if exactly else 5e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_s_name_leads_back_to_it(family: str, model_dirs: ModelDirs) -> None:
    raw = json.loads((model_dirs[family][0] / "config.json").read_text("utf-8"))
    entry, config = architectures.parse(raw, where=family)
    tensors = entry.tensors(config)
    assert [entry.hf_name(tensor.gguf) for tensor in tensors] == [(tensor.hf, tensor.transform) for tensor in tensors]
    names = {tensor.hf for tensor in tensors if tensor.required}
    assert names <= load_hf(model_dirs[family][0]).state_dict().keys() <= {tensor.hf for tensor in tensors} | {"lm_head.weight"}


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.data", "blk.0.attn_norm.bias", "blk.0.nothing.weight", "x", "", "blk.9999999.a.b"]
)
def test_a_name_that_no_rule_makes_leads_nowhere(name: str) -> None:
    assert ARCHITECTURES[0].hf_name(name) is None


def test_old_and_new_config_files_say_the_same() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 128}
    old = _config(rope_theta=5e5, rope_scaling={"type": "yarn", **yarn})
    new = _config(rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **yarn})
    assert old[0].metadata(old[1]) == new[0].metadata(new[1])
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = _config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3})
    new = _config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3})
    np.testing.assert_array_equal(old[0].computed(old[1])["rope_freqs.weight"], new[0].computed(new[1])["rope_freqs.weight"])


def test_an_attention_factor_of_yarn_is_written_relative_to_the_usual_one() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    usual = 0.1 * np.log(4.0) + 1
    for changes, expected in (
        ({}, None),
        ({"attention_factor": 1.5}, 1.5 / usual),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / usual),
    ):
        entry, config = _config(rope_parameters={**rope, **changes})
        assert entry.metadata(config).get("rope.scaling.attn_factor") == (expected and pytest.approx(expected))


def _edited(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    raw = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**raw, **changes}), "utf-8")
    return copy


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mistral", {"sliding_window": 100}, ["100"]),
        ("phi3", {"sliding_window": 47}, ["47"]),
        ("qwen2", {"sliding_window": 77, "use_sliding_window": True, "layer_types": None, "max_window_layers": 1}, ["77"]),
        ("qwen2", {"sliding_window": 77, "use_sliding_window": True, "layer_types": None, "max_window_layers": 2}, []),
        ("qwen3", {"sliding_window": 77, "use_sliding_window": False}, []),
        ("gemma2", {}, []),
        ("phi3_long", {}, ["256 tokens"]),
    ],
)
def test_what_llama_cpp_ignores_is_a_warning(
    family: str, changes: dict[str, Any], words: list[str], model_dirs: ModelDirs
) -> None:
    raw = json.loads((model_dirs[family][0] / "config.json").read_text("utf-8"))
    entry, config = architectures.parse({**raw, **changes}, where=family)
    found = entry.warnings(config)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("qwen2", {"head_dim": 64}, "head_dim"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        (
            "qwen2_yarn",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16}},
            "beta_fast",
        ),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gemma2", {"attn_logit_softcapping": None}, "softcapping"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gemma2", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar"),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, "layer_types"),
        ("phi3_long", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, Any], word: str, model_dirs: ModelDirs
) -> None:
    raw = json.loads((model_dirs[family][0] / "config.json").read_text("utf-8"))
    with pytest.raises(UsageError, match=word):
        _written(*architectures.parse({**raw, **changes}, where=family))


@pytest.mark.parametrize(
    "changes",
    [
        {"long_factor": [1.0] * 15},
        {"long_factor": [1.0] * 15 + [float("nan")]},
        {"short_factor": ["1"] * 16},
        {"short_factor": None},
        {"factor": 0},
        {"rope_theta": -1},
        {"partial_rotary_factor": [1]},
    ],
)
def test_broken_longrope_settings_are_a_data_error(changes: dict[str, Any], model_dirs: ModelDirs) -> None:
    raw = json.loads((model_dirs["phi3_long"][0] / "config.json").read_text("utf-8"))
    with pytest.raises(DataError, match=next(iter(changes))):
        _written(*architectures.parse({**raw, "rope_parameters": {**raw["rope_parameters"], **changes}}, where="test"))


def _written(entry: architectures.Architecture, config: Any) -> Any:
    return entry.metadata(config), entry.computed(config)


@pytest.mark.parametrize(
    "name", ["Gemma3ForConditionalGeneration", "MixtralForCausalLM", "GPT2LMHeadModel", "SmolLM3ForCausalLM"]
)
def test_any_other_family_is_refused_with_the_ones_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        architectures.parse({"architectures": [name]}, where="test")
    assert "Phi3ForCausalLM" in caught.value.next
    assert "Qwen3ForCausalLM" in caught.value.next


def test_a_qwen_without_its_biases_is_a_data_error(model_dirs: ModelDirs, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = _edited(model_dirs["qwen2"][0], tmp_path)
    weights = {
        name: weight for name, weight in load_file(copy / "model.safetensors").items() if not name.endswith("k_proj.bias")
    }
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError):
        export(copy, tmp_path / "out.gguf", type="f32", template="", name="x")


def test_an_entry_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARCHITECTURES[0].name = "other"  # type: ignore[misc]
