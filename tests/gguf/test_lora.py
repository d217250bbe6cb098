"""An adapter as GGUF changes what llama.cpp computes exactly as peft changes the model; what it cannot say is refused."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import container
from llmkit.gguf.lora import CONFIG, WEIGHTS, export_adapter
from llmkit.gguf.runtime import LlamaServer
from tests.gguf.families import FAMILIES, load_hf

QV = ["q_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "q/v only": {"r": 8, "lora_alpha": 16, "target_modules": QV},
    "all linear layers": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rsLoRA": {"r": 4, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "rank_pattern": {"k_proj": 2, r"^model\.layers\.1\.mlp.*proj": 6},
        "alpha_pattern": {"q_proj": 3, "layers.0.self_attn.v_proj": 20.0},
    },
    "patterns and rsLoRA": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": QV,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 1},
    },
}
Make = Callable[..., Path]


@pytest.fixture
def adapter_of(tmp_path: Path) -> Make:
    """A folder with an adapter of random weights, as peft saves it: `adapter_of(base, r=4, target_modules=[...])`."""

    def make(base: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        torch.manual_seed(1)
        model = get_peft_model(load_hf(base), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": QV, **options}))
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight.data, std=0.05)
                weight.data = weight.data.to(dtype)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        return folder

    return make


def expected(base: Path, adapter: Path, ids: list[int]) -> torch.Tensor:
    model = PeftModel.from_pretrained(load_hf(base), adapter).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


def assert_speaks_like_peft(base: Path, adapter: Path, base_gguf: Path, out: Path, *, tolerance: float) -> None:
    ids = torch.randint(8, 300, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    wanted = expected(base, adapter, ids)
    settings = {"threads": 1, "context": 64, "exact_attention": True}
    with LlamaServer(base_gguf, adapter=out, **settings) as server:
        found = server.next_log_probabilities(ids, top=len(wanted))
    with LlamaServer(base_gguf, **settings) as server:
        plain = server.next_log_probabilities(ids, top=len(wanted))
    likely = [index for index in range(len(wanted)) if wanted[index] > -20]
    left = max(abs(found[index] - float(wanted[index])) for index in likely)
    assert left <= tolerance
    assert max(abs(plain[index] - float(wanted[index])) for index in likely) > max(0.2, 10 * left)  # the adapter does something


@pytest.mark.parametrize(
    ("family", "kind"), [*(("llama3", kind) for kind in KINDS), *((family, "all linear layers") for family in FAMILIES)]
)
def test_llama_cpp_with_the_adapter_speaks_as_peft_s_model(
    family: str, kind: str, model_dirs: Any, exported: Callable[..., Path], adapter_of: Make, tmp_path: Path
) -> None:
    base = model_dirs[family][0]
    adapter = adapter_of(base, **KINDS[kind])
    facts = export_adapter(adapter, base, tmp_path / "out.gguf", name="test", type="f32")
    assert facts["tensors"] == len(load_file(adapter / WEIGHTS))
    assert_speaks_like_peft(
        base, adapter, exported(family, "f32"), tmp_path / "out.gguf", tolerance=1e-2 if "gemma" in family else 1e-4
    )


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_the_embedding_or_the_head_speaks_as_peft_s(
    target: str, llama3_dir: Path, exported: Callable[..., Path], adapter_of: Make, tmp_path: Path
) -> None:
    adapter = adapter_of(llama3_dir, target_modules=[*QV, target])
    export_adapter(adapter, llama3_dir, tmp_path / "out.gguf", name="test", type="f32")
    assert_speaks_like_peft(llama3_dir, adapter, exported("llama3", "f32"), tmp_path / "out.gguf", tolerance=1e-4)


def test_a_bf16_adapter_goes_over_a_quantized_base(
    llama3_dir: Path, exported: Callable[..., Path], adapter_of: Make, tmp_path: Path
) -> None:
    """f16 holds every bf16 value of a usual size: nothing but the base's rounding, and llama.cpp's of activations, is lost."""
    adapter = adapter_of(llama3_dir, torch.bfloat16, target_modules="all-linear")
    export_adapter(adapter, llama3_dir, tmp_path / "out.gguf", name="test")
    assert_speaks_like_peft(llama3_dir, adapter, exported("llama3", "q8_0"), tmp_path / "out.gguf", tolerance=0.15)
    raw = load_file(adapter / WEIGHTS)["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert np.array_equal(stored["blk.0.attn_v.weight.lora_b"].data.astype(np.float32), raw.float().numpy())


def test_the_file_says_what_it_is(llama3_dir: Path, adapter_of: Make, tmp_path: Path) -> None:
    export_adapter(adapter_of(llama3_dir), llama3_dir, tmp_path / "out.gguf", name="mine", metadata={"general.license": "mit"})
    file = container.open_file(tmp_path / "out.gguf")
    said = {key: file.metadata[key] for key in ("general.type", "adapter.type", "general.architecture", "general.name")}
    assert list(said.values()) == ["adapter", "lora", "llama", "mine"]
    assert file.metadata["general.license"] == "mit"
    assert file.metadata["adapter.lora.alpha"] == 8.0
    assert {tensor.shape for tensor in file.tensors if tensor.name == "blk.0.attn_q.weight.lora_b"} == {(256, 4)}
    assert not (tmp_path / "out.gguf.part").exists()


def test_an_adapter_of_another_model_is_not_loaded(
    llama3_dir: Path, exported: Callable[..., Path], adapter_of: Make, tmp_path: Path
) -> None:
    export_adapter(adapter_of(llama3_dir), llama3_dir, tmp_path / "out.gguf", name="x")
    server = LlamaServer(exported("gemma3", "q8_0"), threads=1, context=64, adapter=tmp_path / "out.gguf")
    with pytest.raises(MachineError), server:
        pass
    with (
        pytest.raises(DataError, match="no such"),
        LlamaServer(exported("mistral", "q8_0"), threads=1, context=64, adapter=Path("x")),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"trainable_token_indices": [3, 4]}, "trained whole"),
        ({"init_lora_weights": "pissa"}, "pissa changed the base"),
    ],
)
def test_what_a_gguf_adapter_cannot_say_is_refused(
    options: dict[str, Any], says: str, mistral_dir: Path, adapter_of: Make, tmp_path: Path
) -> None:
    adapter = adapter_of(mistral_dir, **options)
    with pytest.raises(UsageError, match=says) as caught:
        export_adapter(adapter, mistral_dir, tmp_path / "out.gguf", name="x")
    assert caught.value.next
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_lora_on_a_tied_embedding_is_refused(target: str, gemma_dir: Path, adapter_of: Make, tmp_path: Path) -> None:
    adapter = adapter_of(gemma_dir, target_modules=[target])
    with pytest.raises(UsageError, match="ties") as caught:
        export_adapter(adapter, gemma_dir, tmp_path / "out.gguf", name="x")
    assert "merge" in caught.value.next


SETTINGS = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"r": 0}, "r: "),
    ({"r": 5}, "rank 4"),
    ({"lora_alpha": 0}, "changes nothing"),
    ({"lora_alpha": "x"}, "lora_alpha"),
    ({"lora_alpha": 1e-60}, "lora_alpha"),
    ({"alpha_pattern": {"(a|a)*": 3}}, "cannot follow"),
    ({"alpha_pattern": {"a**": 3}}, "no expression"),
    ({"alpha_pattern": {"q_proj\\": 3}}, "no expression"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
]


@pytest.mark.parametrize(("change", "says"), SETTINGS, ids=[str(change) for change, _ in SETTINGS])
def test_settings_that_make_no_sense_are_refused(
    change: dict[str, Any], says: str, mistral_dir: Path, adapter_of: Make, tmp_path: Path
) -> None:
    adapter = adapter_of(mistral_dir)
    path = adapter / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(UsageError, match=says):
        export_adapter(adapter, mistral_dir, tmp_path / "out.gguf", name="x")


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
Weights = dict[str, torch.Tensor]
BROKEN: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "another rank": (lambda w: w.update({f"{LAYER}.lora_A.weight": torch.ones(3, 256)}), "factors of"),
    "another width": (lambda w: w.update({f"{LAYER}.lora_B.weight": torch.ones(255, 4)}), "factors of"),
    "no dimension": (lambda w: w.update({f"{LAYER}.lora_B.weight": torch.ones(())}), "factors of"),
    "one factor": (lambda w: w.pop(f"{LAYER}.lora_A.weight"), "not A.weight and B.weight"),
    "an unknown module": (
        lambda w: w.update({f"base_model.model.../../x.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}),
        "no linear layer",
    ),
    "a name of many lines": (
        lambda w: w.update({"a\nb" * 10**6: torch.ones(4, 4)}),
        r"^a GGUF adapter cannot hold '(a|b|\\n){80,120}', which is no factor of a LoRA$",
    ),
    "the embedding as a linear layer": (
        lambda w: w.update({f"base_model.model.model.embed_tokens.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}),
        "not embedding_A and embedding_B",
    ),
    "a norm": (
        lambda w: w.update({f"base_model.model.model.norm.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}),
        "no linear layer",
    ),
    "a whole weight": (lambda w: w.update({"base_model.model.lm_head.weight": torch.ones(4, 4)}), "no factor"),
    "integers": (lambda w: w.update({f"{LAYER}.lora_A.weight": torch.ones(4, 256, dtype=torch.int8)}), "I8"),
    "NaN": (lambda w: w[f"{LAYER}.lora_B.weight"].fill_(float("nan")), "not finite"),
    "too large for f16": (lambda w: w[f"{LAYER}.lora_B.weight"].fill_(1e6), "too large"),
    "nothing": (lambda w: w.clear(), "no LoRA"),
    "a factor too many": (lambda w: w.update({f"{LAYER}.lora_embedding_A": torch.ones(4, 256)}), "not A.weight and B.weight"),
    "a factor twice": (
        lambda w: w.update({f"{LAYER.removeprefix('base_model.model.')}.lora_A.weight": torch.ones(4, 256)}),
        "twice",
    ),
}


@pytest.mark.parametrize("change", BROKEN)
def test_weights_that_do_not_fit_are_refused(change: str, mistral_dir: Path, adapter_of: Make, tmp_path: Path) -> None:
    adapter = adapter_of(mistral_dir)
    breaks, says = BROKEN[change]
    weights = load_file(adapter / WEIGHTS)
    breaks(weights)
    save_file(weights, adapter / WEIGHTS)
    with pytest.raises(UsageError, match=says):
        export_adapter(adapter, mistral_dir, tmp_path / "out.gguf", name="x")
    assert not list(tmp_path.glob("out*"))


def test_a_folder_without_an_adapter_is_refused(mistral_dir: Path, adapter_of: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole model"):
        export_adapter(mistral_dir, mistral_dir, tmp_path / "out.gguf", name="x")
    with pytest.raises(DataError, match=CONFIG):
        export_adapter(tmp_path, mistral_dir, tmp_path / "out.gguf", name="x")
    (adapter := adapter_of(mistral_dir)).joinpath(WEIGHTS).unlink()
    with pytest.raises(DataError, match=WEIGHTS):
        export_adapter(adapter, mistral_dir, tmp_path / "out.gguf", name="x")
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="unpickling"):
        export_adapter(adapter, mistral_dir, tmp_path / "out.gguf", name="x")


@pytest.fixture(scope="module")
def small_adapter(mistral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    get_peft_model(load_hf(mistral_dir), LoraConfig(r=1, target_modules=["k_proj"], layers_to_transform=[0])).save_pretrained(
        folder
    )
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_an_error_and_never_a_traceback(
    data: st.DataObject, small_adapter: Path, mistral_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small_adapter, folder)
    path = folder / data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    content = bytearray(path.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0] if path.name == WEIGHTS else len(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(header, len(content)) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, header // 2, 0]))])
    refused = False
    try:
        export_adapter(folder, mistral_dir, tmp_path / "out.gguf", name="x")
    except (UsageError, MachineError):
        refused = True
    assert (tmp_path / "out.gguf").exists() != refused
    (tmp_path / "out.gguf").unlink(missing_ok=True)
