"""Back from GGUF: the folder is the model that the file holds, to the bit and to the token."""

import json
import shutil
import unicodedata
from collections import namedtuple
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llmkit.errors import DataError, LlmkitError, MachineError, UsageError
from llmkit.gguf import architectures, read
from llmkit.gguf.container import open_file
from llmkit.gguf.fidelity import TEXTS
from llmkit.gguf.restore import restore
from llmkit.gguf.restored_tokenizer import restore as restore_tokenizer
from llmkit.gguf.runtime import LlamaServer
from tests.gguf import raw_gguf
from tests.gguf.families import FAMILIES, load_hf
from tests.gguf.lines import generated
from tests.gguf.raw_gguf import Tensor, Value


def _restored(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir()
    return restore(path, out, **options)


def _content(path: Path) -> tuple[Mapping[str, Any], dict[str, tuple[tuple[int, ...], str, bytes]]]:
    file, data = open_file(path), path.read_bytes()
    return file.metadata, {
        tensor.name: (tensor.shape, tensor.type.name, data[tensor.offset : tensor.offset + tensor.size])
        for tensor in file.tensors
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_to_folder_to_gguf_changes_no_tensor_and_no_key(
    family: str, exported: Callable[..., Path], model_dirs: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    from llmkit.gguf.convert import export

    first = exported(family, "f32")
    _restored(first, tmp_path / "folder")
    template = tmp_path / "folder" / "chat_template.jinja"
    assert template.read_text("utf-8") == model_dirs[family][1]
    export(tmp_path / "folder", tmp_path / "again.gguf", type="f32", template=template.read_text("utf-8"), name=family)
    ours, theirs = _content(tmp_path / "again.gguf"), _content(first)
    assert ours[1] == theirs[1]
    assert ours[0] == theirs[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_with_the_restored_folder(
    family: str, exported: Callable[..., Path], model_dirs: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    _restored(exported(family, "f32"), tmp_path / "folder")
    original, again = load_hf(model_dirs[family][0]), load_hf(tmp_path / "folder")
    ids = torch.randint(3, 400, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = again(ids).logits.log_softmax(-1), original(ids).logits.log_softmax(-1)
    assert torch.allclose(ours, theirs, atol=1e-5), float((ours - theirs).abs().max())
    assert _stops(again) >= _stops(original)


def _stops(model: Any) -> set[int]:
    found = model.generation_config.eos_token_id
    return set(found if isinstance(found, list) else [found])


@pytest.mark.parametrize("family", ["llama2", "llama3", "smollm2", "qwen2", "qwen3", "gemma3", "phi3"])
def test_the_restored_tokenizer_gives_llama_cpps_ids(family: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    path = exported(family, "f32")
    _restored(path, tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder", local_files_only=True)
    texts = [*TEXTS, *generated(150, seed=5), "e\u0301<|im_end|>x", "</s> a<end_of_turn>\n\n b"]
    if family == "qwen2":  # transformers composes its text whatever the folder says
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    with LlamaServer(path, threads=1, context=256) as server:
        for text in texts:
            plain = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert plain == server.tokenize(text, add_special=False, parse_special=True), text
        whole = tokenizer(TEXTS[0])["input_ids"]
        assert whole == server.tokenize(TEXTS[0], add_special=True, parse_special=True)
        assert tokenizer.decode(whole, skip_special_tokens=True) == TEXTS[0]


# Anything the container can hold, in each way a type is decoded.
_TYPES = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_K", "Q6_K", "IQ3_S", "TQ2_0")]


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(_TYPES), rows=st.integers(1, 9), seed=st.integers(0, 99), dtype=st.sampled_from(["exact", "bf16"]))
def test_restored_weights_are_the_decoded_ones(
    kind: GGMLQuantizationType, rows: int, seed: int, dtype: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    wide, heads = 256, 4  # a block of the K types
    keys: dict[str, Value | None] = {
        "llama.embedding_length": Value("u32", wide),
        "llama.attention.head_count": Value("u32", heads),
    }
    keys |= {"llama.attention.head_count_kv": Value("u32", heads), "llama.feed_forward_length": Value("u32", rows)}
    shapes = {
        "ffn_gate": (rows, wide),
        "ffn_up": (rows, wide),
        "ffn_down": (wide, rows),
        "attn_norm": (wide,),
        "ffn_norm": (wide,),
    }
    shapes |= {f"attn_{name}": (wide, wide) for name in ("q", "k", "v", "output")}
    tensors = [_random("token_embd.weight", (270, wide), kind, seed), _random("output_norm.weight", (wide,), kind, seed)]
    for name, shape in shapes.items():
        fits = shape[-1] % 256 == 0
        tensors.append(_random(f"blk.0.{name}.weight", shape, kind if fits else GGMLQuantizationType.F32, seed))
    path = raw_gguf.tiny(folder / "m.gguf", change=keys, tensors=tensors)
    facts = _restored(path, folder / "out", dtype=dtype)
    rule = architectures.by_name("llama", where="")
    with safe_open(folder / "out" / "model.safetensors", "pt") as stream:
        for tensor in tensors:
            found = rule.hf_name(tensor.name)
            assert found is not None
            decoded = gguf.dequantize(_raw(tensor), GGMLQuantizationType(tensor.type)).reshape(tensor.shape)
            if found[1] is not None:
                decoded = found[1].backward(decoded, {"attention.head_count": heads, "attention.head_count_kv": heads})
            expected = torch.from_numpy(np.array(decoded, np.float32))
            stored = stream.get_tensor(found[0])
            assert stored.float().equal(expected if dtype == "exact" else expected.bfloat16().float()), tensor.name
            assert facts["gguf_types"][found[0]] == GGMLQuantizationType(tensor.type).name
            if dtype == "exact" and tensor.type in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
                assert stored.element_size() == 2
    assert facts["parameters"] == sum(int(np.prod(tensor.shape)) for tensor in tensors)


def _raw(tensor: Tensor) -> Any:
    shape = gguf.quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType(tensor.type))
    return np.frombuffer(tensor.data, np.uint8).reshape(shape)


def _random(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int) -> Tensor:
    """Values of every size, whole blocks zero among them."""
    import libgguf

    generator = np.random.default_rng([seed, len(name)])
    values = (generator.standard_normal(shape) * 10.0 ** generator.integers(-6, 3, (*shape[:-1], 1))).astype(np.float32)
    rows = values.reshape(-1, shape[-1])
    plain = kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    data = gguf.quantize(rows, kind) if plain else libgguf.quantize_rows(rows, kind)
    return Tensor(name, shape, kind, np.ascontiguousarray(data).tobytes())


def test_a_model_in_parts_is_restored_as_the_whole_one(tmp_path: Path) -> None:
    whole = raw_gguf.tiny(tmp_path / "whole.gguf")
    keys, tensors = raw_gguf.tiny_keys(), raw_gguf.tiny_tensors()
    for number, share in enumerate([tensors[:4], tensors[4:]]):
        split = {"no": Value("u16", number), "count": Value("u16", 2), "tensors.count": Value("i32", len(tensors))}
        first = list(keys.items()) if number == 0 else []
        listed = [*first, *((f"split.{key}", value) for key, value in split.items())]
        raw_gguf.write(tmp_path / f"m-{number + 1:05d}-of-00002.gguf", listed, share)
    _restored(whole, tmp_path / "one")
    _restored(tmp_path / "m-00002-of-00002.gguf", tmp_path / "two")
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def _spm_ids(text: str, tokens: list[str], scores: list[float]) -> list[str]:
    """llama.cpp's `llm_tokenizer_spm`, plainly: join the two neighbours whose token scores highest, leftmost first."""
    score = dict(zip(tokens, scores, strict=True))
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [(-score[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in score]
        if not pairs:
            return symbols
        at = min(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


_LETTERS = "ab▁"


@settings(max_examples=80, deadline=None)
@given(
    pieces=st.lists(st.text(_LETTERS, min_size=2, max_size=5), min_size=1, max_size=25, unique=True),
    text=st.text("ab ", min_size=1, max_size=25),
    seed=st.randoms(use_true_random=False),
)
def test_merges_made_of_scores_join_as_llama_cpp_does(pieces: list[str], text: str, seed: Any) -> None:
    tokens = ["<unk>", *_LETTERS, *pieces]
    scores = [float(-number) for number in range(len(tokens))]
    seed.shuffle(scores)
    keys: dict[str, Any] = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": [2, *[1] * (len(tokens) - 1)]}
    keys |= {"add_space_prefix": False, "add_bos_token": False}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    made = restore_tokenizer(metadata, rows=len(tokens), context=8, where="")
    assert Tokenizer.from_str(json.dumps(made.tokenizer)).encode(text).tokens == _spm_ids(text, tokens, scores)


def test_padding_at_the_end_is_dropped_and_unused_rows_are_kept(tmp_path: Path) -> None:
    keys = raw_gguf.tiny_keys()
    tokens, types = list(keys["tokenizer.ggml.tokens"].value), list(keys["tokenizer.ggml.token_type"].value)
    tokens[-3:], types[-3:] = ["[PAD267]", "[PAD268]", "[PAD269]"], [5, 5, 5]
    tokens[-5], types[-5] = "<left_free>", 5
    change = {"tokenizer.ggml.tokens": Value("[str]", tokens), "tokenizer.ggml.token_type": Value("[i32]", types)}
    _restored(raw_gguf.tiny(tmp_path / "m.gguf", change=change), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 267
    assert tokenizer.token_to_id("<left_free>") == 265
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 270


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"general.architecture": Value("str", "mamba")}, UsageError, "architecture 'mamba'"),
        ({"general.type": Value("str", "adapter")}, DataError, "holds no model but 'adapter'"),
        ({"tokenizer.ggml.model": None}, DataError, "no tokenizer"),
        ({"tokenizer.ggml.model": Value("str", "t5")}, UsageError, "kind 't5'"),
        ({"tokenizer.ggml.model": Value("str", "gpt2"), "tokenizer.ggml.pre": Value("str", "viking")}, UsageError, "'viking'"),
        ({"tokenizer.ggml.model": Value("str", "gpt2")}, UsageError, "'default'"),
        ({"tokenizer.ggml.scores": Value("[str]", ["a"])}, DataError, "no score"),
        ({"tokenizer.ggml.tokens": Value("[str]", ["a"])}, DataError, "does not fit"),
        ({"tokenizer.ggml.tokens": Value("[str]", ["a"] * 270)}, DataError, "one text"),
        ({"tokenizer.ggml.scores": None}, DataError, "no score"),
        ({"llama.block_count": Value("u32", 2**31)}, DataError, "block_count"),
        ({"llama.block_count": Value("u32", 2)}, DataError, "lacks 9 tensors, blk.1."),
        ({"llama.embedding_length": Value("u32", 32)}, DataError, "token_embd.weight has shape"),
        ({"llama.embedding_length": Value("str", "x")}, DataError, "embedding_length is 'x'"),
        ({"llama.attention.head_count": Value("u32", 0)}, DataError, "metadata cannot be used"),
        ({"llama.vocab_size": Value("u32", 99)}, DataError, "vocab_size = 99"),
        ({"llama.expert_count": Value("u32", 8)}, UsageError, "expert_count"),
        ({"llama.rope.scaling.type": Value("str", "odd"), "llama.rope.scaling.factor": Value("f32", 2)}, UsageError, "'odd'"),
        ({"llama.context_length": None}, DataError, "context_length is None"),
    ],
)
def test_what_cannot_be_restored_is_said_in_a_line(
    change: dict[str, Value | None], kind: type[LlmkitError], what: str, tmp_path: Path
) -> None:
    path = raw_gguf.tiny(tmp_path / "m.gguf", change=change)
    with pytest.raises(kind, match=what) as caught:
        _restored(path, tmp_path / "out")
    assert str(path) in caught.value.where
    assert not list((tmp_path / "out").iterdir())


def test_a_stray_tensor_and_a_missing_one_are_named(tmp_path: Path) -> None:
    tensors = raw_gguf.tiny_tensors()
    stray = raw_gguf.f32("blk.0.ssm_a.weight", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"blk\.0\.ssm_a\.weight has no place"):
        _restored(raw_gguf.tiny(tmp_path / "a.gguf", tensors=[*tensors, stray]), tmp_path / "a")
    with pytest.raises(DataError, match=r"lacks 1 tensors, output_norm\.weight"):
        _restored(raw_gguf.tiny(tmp_path / "b.gguf", tensors=tensors[:-1]), tmp_path / "b")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = raw_gguf.tiny_tensors()
    broken = raw_gguf.f32("blk.0.ffn_norm.weight", np.full(16, np.nan))
    path = raw_gguf.tiny(tmp_path / "m.gguf", tensors=[broken if tensor.name == broken.name else tensor for tensor in tensors])
    with pytest.raises(DataError, match=r"blk\.0\.ffn_norm\.weight holds values that are not finite"):
        _restored(path, tmp_path / "out")


def test_a_disk_too_small_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(MachineError, match=r"needs 0\.1 GB of disk"):
        _restored(raw_gguf.tiny(tmp_path / "m.gguf"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m"])
def test_the_demo_models_tokenize_as_llama_cpp_does_and_hold_the_files_weights(name: str, tmp_path: Path) -> None:
    from llmkit import origin

    made = origin.model(f"demo:{name}")
    folder = (made.ready or made.fetch()).path
    path = origin._DEMO_MODELS[name].file(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*TEXTS, *generated(600, seed=9), "a" + " " * 45 + "b", "\t\t\t<b>x</b>\n\n\n"]
    with LlamaServer(path, threads=2, context=256) as server:
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == server.tokenize(text, add_special=False, parse_special=True), text
        ids = tokenizer("The capital of France is")["input_ids"]
        theirs = server.next_log_probabilities(ids, top=5)
    with torch.inference_mode():
        ours = load_hf(folder)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert int(ours.argmax()) == max(theirs, key=lambda token: theirs[token])
    # llama.cpp rounds activations to 8 bits beside quantized weights.
    assert all(abs(float(ours[token]) - value) < 0.3 for token, value in theirs.items())
    with safe_open(folder / "model.safetensors", "pt") as stream:
        for weight, expected in read.state_dict(path).items():
            assert weight == "lm_head.weight" or stream.get_tensor(weight).equal(expected.bfloat16()), weight
