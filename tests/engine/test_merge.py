"""The merge against peft's own, for every kind of adapter; what it refuses; what it needs of memory."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from llmkit.engine import delta, loading, lora, merge, probe, shards
from llmkit.errors import DataError, FidelityError, MachineError, UsageError

Make = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "rsLoRA and DoRA": {"rslora": True, "dora": True},
    "a norm saved": {"modules_to_save": ("norm",)},
    "embeddings saved": {"modules_to_save": ("embed_tokens", "lm_head")},
    "DoRA, a norm saved": {"dora": True, "modules_to_save": ("model.norm", "input_layernorm")},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder with a tiny model: `base_of(tied=True, shard="40KB", dtype=torch.bfloat16, hidden_size=32)`."""
    made: dict[str, Path] = {}

    def make(*, tied: bool = False, shard: str = "1GB", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        key = repr((tied, shard, dtype, changes))
        if key not in made:
            config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=tied, attention_bias=True, **changes)
            torch.manual_seed(3)
            made[key] = tmp_path_factory.mktemp("base")
            model = AutoModelForCausalLM.from_config(config).to(dtype)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.05)  # biases and norms are constants when fresh
            model.generation_config.eos_token_id = [0, 2]
            model.save_pretrained(made[key], max_shard_size=shard)
        return made[key]

    return make


@pytest.fixture
def adapter_of(tiny_model: Path, tmp_path: Path) -> Make:
    """The folder of an adapter with random weights, and a tokenizer: `adapter_of(base, seed=1, scale=0.05, dora=True)`."""

    def make(base: Path, *, seed: int = 1, scale: float = 0.05, **shape: Any) -> Path:
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        options = {"rank": 4, "alpha": 8.0, **shape}
        model = lora.attach(loading.load_model(base), lora.Shape(**options), seed=seed, precision="fp32", base_ref="demo:tiny")
        trained(model, seed=seed, scale=scale)
        lora.save(model, folder)
        loading.load_tokenizer(tiny_model).save_pretrained(folder)
        return folder

    return make


def trained(model: Any, *, seed: int = 1, scale: float = 0.05) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * scale)


def merged(base: Path, adapters: list[tuple[Path, float]], out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return merge.merge(base, adapters, out, **{"dtype": "fp32", **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_equal(folder: Path, expected: Any) -> None:
    """`folder` loads to the weights of the model `expected`, and holds the same tensors as its base did."""
    state = loading.load_model(folder).state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(state[name], tensor, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_merges_as_peft_merges_it(
    kind: str, tied: bool, base_of: Make, adapter_of: Make, tmp_path: Path
) -> None:
    base = base_of(tied=tied, shard="60KB")
    adapter = adapter_of(base, **KINDS[kind])
    facts = merged(base, [(adapter, 1.0)], tmp_path / "out")
    expected = PeftModel.from_pretrained(loading.load_model(base), adapter).merge_and_unload(safe_merge=True)
    assert_equal(tmp_path / "out", expected)
    assert facts["max_logit_difference"] < 1e-4 < facts["adapter_max_logit_difference"]
    assert ("lm_head.weight" in weights(tmp_path / "out")) == (not tied)


def test_the_layout_of_the_base_is_kept(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    for shard in ("60KB", "1GB"):
        base, out = base_of(shard=shard), tmp_path / f"out-{shard}"
        merged(base, [(adapter_of(base), 1.0)], out, dtype="bf16")
        assert {path.name for path in base.glob("model*")} == {path.name for path in out.glob("model*")}
        assert [path for path in out.iterdir() if path.is_dir()] == []
        for file in out.glob("*.safetensors"):
            with safe_open(file, "pt") as ours, safe_open(base / file.name, "pt") as theirs:
                assert sorted(ours.keys()) == sorted(theirs.keys())
                assert ours.metadata() == {"format": "pt"}
        assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert str(base).encode() not in b"".join(path.read_bytes() for path in out.glob("*.json"))
    index = json.loads((tmp_path / "out-60KB" / shards.INDEX).read_text())
    assert index["weight_map"] == json.loads((base_of(shard="60KB") / shards.INDEX).read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in weights(tmp_path / "out-60KB").values())


@pytest.fixture(scope="module")
def three(
    base_of: Make, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, dict[str, torch.Tensor]]]:
    """Adapters of other ranks, kinds and targets, each with what peft adds to the base for it alone."""
    shapes: list[dict[str, Any]] = [{"rank": 4}, {"rank": 2, "rslora": True}, {"rank": 8, "targets": ("q_proj", "down_proj")}]
    original = loading.load_model(base_of()).state_dict()
    made = []
    for seed, shape in enumerate(shapes):
        folder, shaped = tmp_path_factory.mktemp("part"), lora.Shape(alpha=8, **shape)
        model = lora.attach(loading.load_model(base_of()), shaped, seed=seed, precision="fp32", base_ref="demo:tiny")
        trained(model, seed=seed)
        lora.save(model, folder)
        loading.load_tokenizer(tiny_model).save_pretrained(folder)
        state = model.merge_and_unload().state_dict()
        made.append((folder, {name: tensor - original[name] for name, tensor in state.items()}))
    return made


@settings(max_examples=4, deadline=None)
@given(shares=st.lists(st.floats(-2, 2), min_size=1, max_size=3))
def test_a_weighted_merge_is_the_sum_of_the_weighted_deltas(
    shares: list[float], base_of: Make, three: list[tuple[Path, dict[str, torch.Tensor]]]
) -> None:
    with tempfile.TemporaryDirectory() as out:
        parts = [(folder, share) for (folder, _), share in zip(three, shares, strict=False)]
        merged(base_of(), parts, Path(out))
        found = loading.load_model(Path(out)).state_dict()
    for name, tensor in loading.load_model(base_of()).state_dict().items():
        wanted = tensor + sum(share * added[name] for (_, added), share in zip(three, shares, strict=False))
        assert torch.allclose(found[name], wanted, rtol=0, atol=3e-6), name


@pytest.mark.parametrize("kind", ["rsLoRA", "embeddings saved", "DoRA, a norm saved"])
def test_a_base_too_large_for_memory_merges_alike(
    kind: str, base_of: Make, adapter_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(tied=kind == "embeddings saved", shard="60KB", dtype=torch.bfloat16)
    adapter = adapter_of(base, **KINDS[kind])
    expected = merged(base, [(adapter, 1.0)], tmp_path / "roomy")
    monkeypatch.setattr(loading, "free_memory", lambda: 0)
    monkeypatch.setattr(loading, "_budget", lambda: {"cpu": 100_000})
    seen, load = [], loading.load_model

    def kept(*given: Any, **options: Any) -> Any:
        seen.append(load(*given, **options))
        return seen[-1]

    monkeypatch.setattr(loading, "load_model", kept)
    facts = merged(base, [(adapter, 1.0)], tmp_path / "tight")
    assert "disk" in {str(place) for model in seen for place in model.hf_device_map.values()}
    assert facts.pop("dtype") == expected.pop("dtype")
    assert facts == pytest.approx(expected, rel=1e-2, abs=1e-4)
    found = weights(tmp_path / "tight")
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(tmp_path / "roomy").items())
    assert {path.name for path in (tmp_path / "tight").iterdir()} == {path.name for path in (tmp_path / "roomy").iterdir()}


def test_what_is_saved_says_what_it_reports(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    adapter, tokenizer = adapter_of(base, scale=0.2), loading.load_tokenizer(base_tokenizer(base, adapter_of))
    facts = merged(base, [(adapter, 1.0)], tmp_path / "out", dtype="bf16", eos_tokens=("<|im_end|>",))
    expected = probe.logits(PeftModel.from_pretrained(loading.load_model(base), adapter).eval(), tokenizer)
    gap = probe.difference(expected, probe.logits(loading.load_model(tmp_path / "out"), tokenizer))
    assert gap.kl == pytest.approx(facts["rounding_kl"], abs=1e-6)
    assert gap.max_abs == pytest.approx(facts["saved_max_logit_difference"], rel=1e-3)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert loading.load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def base_tokenizer(base: Path, adapter_of: Make) -> Path:
    return adapter_of(base)


def test_auto_saves_fp32_where_bf16_would_round_the_tune_away(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of(initializer_range=0.2)
    small, large = adapter_of(base, scale=8e-3, alpha=1.0), adapter_of(base, scale=0.2)
    assert merged(base, [(small, 1.0)], tmp_path / "small", dtype="auto")["dtype"] == "fp32"
    assert {tensor.dtype for tensor in weights(tmp_path / "small").values()} == {torch.float32}
    assert merged(base, [(large, 1.0)], tmp_path / "large", dtype="auto")["dtype"] == "bf16"
    with pytest.raises(FidelityError, match="rounding to bf16"):
        merged(base, [(small, 1.0)], tmp_path / "forced", dtype="bf16")


def test_a_wholly_trained_model_passes_the_same_gates(base_of: Make, tiny_model: Path, tmp_path: Path) -> None:
    base = base_of(tied=True, shard="60KB", dtype=torch.bfloat16)
    model = lora.prepare_full(loading.load_model(base))
    trained(model, scale=0.1)
    lora.save_full(model, tmp_path / "full")
    loading.load_tokenizer(tiny_model).save_pretrained(tmp_path / "full")
    facts = merged(base, [(tmp_path / "full", 1.0)], tmp_path / "out", dtype="auto")
    assert (facts["dtype"], facts["max_logit_difference"]) == ("bf16", 0.0)
    assert facts["adapter_kl"] > facts["rounding_kl"] > 0
    found = loading.load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in model.state_dict().items())
    with pytest.raises(UsageError, match="no adapter that could be weighted"):
        merged(base, [(tmp_path / "full", 0.5)], tmp_path / "half")
    with pytest.raises(DataError, match="not those of this base"):
        merged(base_of(tied=True, hidden_size=32), [(tmp_path / "full", 1.0)], tmp_path / "other")


def test_a_wrong_sum_is_never_published(
    base_of: Make, adapter_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof does not share the merge's arithmetic: a slip in it is seen."""
    base = base_of()
    right = delta.apply
    wrong = {
        "no delta": lambda adapters, name, weight: weight,
        "the delta twice": lambda adapters, name, weight: right(adapters, name, right(adapters, name, weight)),
        "one layer left out": lambda adapters, name, weight: weight if "1.mlp.up" in name else right(adapters, name, weight),
    }
    adapter = adapter_of(base)
    for what, change in wrong.items():
        monkeypatch.setattr(delta, "apply", change)
        with pytest.raises(FidelityError, match="differs from base"):
            merged(base, [(adapter, 1.0)], tmp_path / what)


def test_a_nan_in_an_adapter_names_its_tensor(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    adapter = adapter_of(base)
    edit(adapter, lambda state: state["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][0].fill_(torch.nan))
    with pytest.raises(FidelityError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight is not finite"):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


def edit(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(adapter / delta.WEIGHTS)
    change(state)
    save_file(state, adapter / delta.WEIGHTS)


BROKEN_WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "no linear layer": lambda s: s.update({k.replace("up_proj", "wide_proj"): s.pop(k) for k in list(s) if "up_proj" in k}),
    "do not fit rank 4": lambda s: s.update({k: v[:2].clone() for k, v in s.items() if "lora_A" in k}),
    "adapter with fewer|is \\[": lambda s: s.update({k: v[:8].clone() for k, v in s.items() if "lora_B" in k}),
    "has \\['lora_A'\\]": lambda s: [s.pop(k) for k in list(s) if "lora_B" in k],
    "neither a linear layer's": lambda s: s.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}),
    "holds no LoRA weights": lambda s: s.clear(),
}


@pytest.mark.parametrize("message", BROKEN_WEIGHTS)
def test_an_adapter_that_does_not_fit_is_refused_by_name(message: str, base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    adapter = adapter_of(base)
    edit(adapter, BROKEN_WEIGHTS[message])
    with pytest.raises(DataError, match=message):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


BROKEN_CONFIGS: dict[str, Any] = {
    "r is": {"r": 0},
    "lora_alpha is": {"lora_alpha": "8"},
    "it uses rank_pattern": {"rank_pattern": {"(a+)+$": 2}},
    "it uses fan_in_fan_out": {"fan_in_fan_out": True},
    "its initialisation pissa": {"init_lora_weights": "pissa"},
    "it is a IA3 adapter": {"peft_type": "IA3"},
    "it trains biases": {"bias": "all"},
    "no list of names": {"modules_to_save": [1]},
}


@pytest.mark.parametrize("message", BROKEN_CONFIGS)
def test_an_adapter_that_asks_for_more_is_refused(message: str, base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    adapter = adapter_of(base)
    path = adapter / delta.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **BROKEN_CONFIGS[message]}))
    with pytest.raises(DataError, match=message):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


@pytest.mark.parametrize("name", [delta.CONFIG, delta.WEIGHTS])
@pytest.mark.parametrize("keep", [None, 0, 400])
def test_a_missing_or_cut_file_is_a_clear_error(
    name: str, keep: int | None, base_of: Make, adapter_of: Make, tmp_path: Path
) -> None:
    base = base_of()
    adapter = adapter_of(base)
    content = (adapter / name).read_bytes()
    (adapter / name).unlink()
    if keep is not None:
        (adapter / name).write_bytes(content[:keep])
    with pytest.raises(DataError):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


def test_a_target_pattern_is_not_run(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    """A foreign adapter's `target_modules` may be a pattern that matches for ever; its tensors say what it touches."""
    base = base_of()
    adapter = adapter_of(base)
    path = adapter / delta.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": "(((.+)+)+)+!"}))
    assert merged(base, [(adapter, 1.0)], tmp_path / "out")["changed_weights"] == 14


def test_an_adapter_that_unties_tied_embeddings_is_refused(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of(tied=True)
    adapter = adapter_of(base, modules_to_save=("embed_tokens",))
    edit(adapter, lambda state: state["base_model.model.lm_head.weight"].add_(1))
    with pytest.raises(DataError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight"):
        merged(base, [(adapter, 1.0)], tmp_path / "out")
    edit(adapter, lambda state: state.pop("base_model.model.lm_head.weight"))
    with pytest.raises(DataError, match="ties"):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


@pytest.mark.parametrize("shape", [{"dora": True}, {"modules_to_save": ("norm",)}])
def test_what_replaces_weights_is_merged_alone_and_whole(
    shape: dict[str, Any], base_of: Make, adapter_of: Make, tmp_path: Path
) -> None:
    base = base_of()
    plain, replacing = adapter_of(base), adapter_of(base, **shape)
    for parts in ([(replacing, 0.5)], [(plain, 1.0), (replacing, 1.0)]):
        with pytest.raises(UsageError, match="alone and with weight 1"):
            merged(base, parts, tmp_path / "out")


def test_a_weight_that_is_no_number_is_refused(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    with pytest.raises(UsageError, match="finite"):
        merged(base, [(adapter_of(base), float("nan"))], tmp_path / "out")


def test_a_quantized_base_is_refused(base_of: Make, adapter_of: Make, tmp_path: Path) -> None:
    base = base_of()
    four_bit = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    four_bit.save_pretrained(tmp_path / "quantized")
    with pytest.raises(DataError, match="unquantized base only"):
        merged(tmp_path / "quantized", [(adapter_of(base), 1.0)], tmp_path / "out")


def test_a_full_disk_is_told_before_the_work(
    base_of: Make, adapter_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of()
    adapter = adapter_of(base)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MachineError, match="GiB of disk"):
        merged(base, [(adapter, 1.0)], tmp_path / "out")


def test_an_index_that_points_elsewhere_is_refused(base_of: Make, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_of(shard="60KB"), base)
    for index in ('{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {}}', "[" * 100_000, '{"weight_map": {"a": 1}}'):
        (base / shards.INDEX).write_text(index)
        with pytest.raises(DataError, match="index"):
            shards.entries(base)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "DoRA"])
def test_a_real_model_merges_as_peft_merges_it(kind: str, gemma_270m: Path, tmp_path: Path) -> None:
    model = lora.attach(
        loading.load_model(gemma_270m), lora.Shape(rank=8, alpha=16, **KINDS[kind]), seed=1, precision="fp32", base_ref=""
    )
    trained(model, scale=0.01)
    lora.save(model, tmp_path / "adapter")
    loading.load_tokenizer(gemma_270m).save_pretrained(tmp_path / "adapter")
    facts = merged(gemma_270m, [(tmp_path / "adapter", 1.0)], tmp_path / "out")
    assert facts["max_logit_difference"] < 1e-3 < facts["adapter_max_logit_difference"]
    assert_equal(tmp_path / "out", model.merge_and_unload(safe_merge=True))


# Rewrites a folder in a process of its own and prints by how many bytes the peak of its memory grew.
REWRITE = """
import sys, torch
from pathlib import Path
from llmkit.engine import shards
from llmkit.memory import peak_bytes
torch.set_num_threads(1)
source, out = map(Path, sys.argv[1:])
shards.entries(source)
before = peak_bytes()
shards.rewrite(source, out, lambda name, weight: weight.float() + 1, dtype=torch.float32)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("files", [1, 8])
def test_the_sum_needs_the_memory_of_a_tensor_not_of_the_model(files: int, tmp_path: Path) -> None:
    """64 tensors of 2 MiB in one file and in eight: 128 MiB that become 256."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    tensors = {f"layer.{number}": torch.randn(1024, 1024).bfloat16() for number in range(64)}
    names = [shards.WEIGHTS] if files == 1 else [f"model-{number}.safetensors" for number in range(files)]
    mapping = {name: names[position * len(names) // 64] for position, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name, where in mapping.items() if where == file}, source / file)
    if files > 1:
        (source / shards.INDEX).write_text(json.dumps({"weight_map": mapping}))
    run = subprocess.run([sys.executable, "-c", REWRITE, source, out], check=True, timeout=120, capture_output=True, text=True)
    assert int(run.stdout) < 48 << 20
    assert torch.equal(weights(out)["layer.63"], tensors["layer.63"].float() + 1)
