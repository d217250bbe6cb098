"""Export: what goes in comes out, in every type; what cannot be exported says so."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmkit.errors import DataError, LlmkitError, UsageError
from llmkit.gguf.convert import export
from llmkit.gguf.read import metadata, state_dict

from .conftest import load_hf

FAMILIES = ("llama3", "mistral", "gemma3")
# The largest RMS error of a tensor, relative to its RMS: normal weights rounded to that many levels.
RMS_ERROR = {"f16": 4e-4, "bf16": 3e-3, "q8_0": 8e-3, "q5_k_m": 5e-2, "q4_k_m": 9e-2, "q4_0": 1.2e-1}


def _export(model_dir: Path, out: Path, kind: str = "f32", **options: Any) -> Any:
    return export(model_dir, out, type=kind, template="", name="tiny", **options)


@pytest.fixture
def copy(mistral_dir: Path, tmp_path: Path) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(mistral_dir, tmp_path / "model"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_f32_file_holds_exactly_the_weights_of_the_model(
    family: str, exported: Callable[..., Path], model_dirs: Any
) -> None:
    expected = load_hf(model_dirs[family][0]).state_dict()
    found = state_dict(exported(family, "f32"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Gemma's norms go through 1 + w, which rounds to the spacing of fp32 near 1.
        error = 2.4e-7 if family == "gemma3" and "norm" in name else 0.0
        torch.testing.assert_close(found[name], weight, rtol=0.0, atol=error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", RMS_ERROR)
def test_every_type_gives_the_weights_back_within_its_error(
    family: str, kind: str, exported: Callable[..., Path], model_dirs: Any
) -> None:
    expected = load_hf(model_dirs[family][0]).state_dict()
    for name, weight in state_dict(exported(family, kind)).items():
        error = (weight - expected[name]).square().mean().sqrt() / expected[name].square().mean().sqrt()
        assert error <= RMS_ERROR[kind], name


def test_weights_read_back_load_into_a_model_of_the_same_config(exported: Callable[..., Path], gemma_dir: Path) -> None:
    model = load_hf(gemma_dir)
    model.load_state_dict(state_dict(exported("gemma3", "q8_0")))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_sharded_weights_make_the_same_file_as_a_single_one(mistral_dir: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    load_hf(mistral_dir).save_pretrained(sharded, max_shard_size="500KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(mistral_dir / name, sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    _export(sharded, tmp_path / "one.gguf")
    _export(mistral_dir, tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_the_facts_count_types_and_fallbacks(tmp_path: Path, tiny_model: Path) -> None:
    facts = _export(tiny_model, tmp_path / "out.gguf", "q4_k_m")  # rows of 64 and 128 fit no block of 256
    assert facts["fallback_tensors"] == 15  # seven in each of two layers, and the embedding
    assert "Q4_K" not in facts["types"]
    assert facts["tensors"] == sum(facts["types"].values())
    assert 5 < facts["bits_per_weight"] < 9
    assert facts["parameters"] == sum(weight.numel() for weight in load_hf(tiny_model).parameters())


def test_names_licence_template_and_stop_ids_are_written(tmp_path: Path, llama3_dir: Path) -> None:
    out = tmp_path / "out.gguf"
    export(llama3_dir, out, type="q8_0", template="{{ 1 }}", name="我的模型", metadata={"general.license": "apache-2.0"})
    found = metadata(out)
    assert found["general.name"] == "我的模型"
    assert found["general.license"] == "apache-2.0"
    assert found["tokenizer.chat_template"] == "{{ 1 }}"
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, 0)
    assert found["tokenizer.ggml.tokens"][-1].startswith("[PAD")
    assert found["tokenizer.ggml.token_type"][-1] == 5


def test_a_sliding_window_that_llama_cpp_ignores_is_a_warning(copy: Path, tmp_path: Path) -> None:
    _edit(copy / "config.json", sliding_window=128)
    assert "128" in _export(copy, tmp_path / "out.gguf")["warnings"][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["OlmoForCausalLM"]}, ("OlmoForCausalLM", "Gemma3ForCausalLM", "LlamaForCausalLM")),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, ("dynamic", "llama3")),
        ({"hidden_act": "relu"}, ("relu", "silu")),
    ],
)
def test_a_model_that_llama_cpp_would_compute_differently_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], copy: Path, tmp_path: Path
) -> None:
    _edit(copy / "config.json", **changes)
    with pytest.raises(UsageError) as caught:
        _export(copy, tmp_path / "out.gguf")
    for word in words:
        assert word in f"{caught.value.what} {caught.value.next}"


def test_an_unknown_type_names_the_known_ones(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _export(copy, tmp_path / "out.gguf", "q4_k_x")
    assert "q4_k_m" in caught.value.next


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": None},
        {"architectures": "LlamaForCausalLM"},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"vocab_size": 100},
        {"rms_norm_eps": None},
        {"rope_parameters": {"rope_theta": "high"}},
        {"rope_parameters": "none"},
    ],
)
def test_a_damaged_config_is_a_data_error(changes: dict[str, Any], copy: Path, tmp_path: Path) -> None:
    _edit(copy / "config.json", **changes)
    with pytest.raises(DataError):
        _export(copy, tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe\x00"])
def test_a_missing_or_damaged_file_is_a_data_error(name: str, damage: bytes | None, copy: Path, tmp_path: Path) -> None:
    if damage is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(damage)
    with pytest.raises(DataError):
        _export(copy, tmp_path / "out.gguf")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value may be replaced; long collections by their first members."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in itertools.islice(members, 30):
        yield from _places(member, (*path, key))


ODD = [None, True, -1, 0, 10**6, 2**70, 1e300, "", "x", [], [[]], {}, {"type": 5}, {"type": "Sequence"}, {"full_attention": 3}]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_ends_in_no_traceback(name: str, data: st.DataObject, copy: Path, mistral_dir: Path) -> None:
    raw = json.loads((mistral_dir / name).read_text("utf-8"))
    *way, last = data.draw(st.sampled_from(list(_places(raw))))
    target = raw
    for key in way:
        target = target[key]
    target[last] = data.draw(st.sampled_from(ODD))
    (copy / name).write_text(json.dumps(raw), "utf-8")
    with contextlib.suppress(LlmkitError):
        _export(copy, copy / "out.gguf", "bf16")


def test_cut_weights_are_a_data_error(copy: Path, tmp_path: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        _export(copy, tmp_path / "out.gguf")


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_that_leads_out_of_the_folder_is_a_data_error(file: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(tmp_path / "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}), "utf-8")
    with pytest.raises(DataError, match="index"):
        _export(copy, tmp_path / "out.gguf")


def _without_norm(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.norm.weight"]


def _with_adapter(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 2)


def _not_finite(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][3] = float("nan")


def _packed(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)


@pytest.mark.parametrize("damage", [_without_norm, _with_adapter, _not_finite, _packed])
def test_weights_that_are_not_the_model_are_a_data_error(
    damage: Callable[[dict[str, torch.Tensor]], None], copy: Path, tmp_path: Path
) -> None:
    weights = load_file(copy / "model.safetensors")
    damage(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError):
        _export(copy, tmp_path / "out.gguf")


def test_a_weight_beyond_f16_is_refused_rather_than_made_infinite(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="too large for f16"):
        _export(copy, tmp_path / "out.gguf", "f16")
    _export(copy, tmp_path / "out.gguf", "bf16")
