"""Adapters of every kind put on and taken off, on plain, bf16 and 4-bit bases; whole models made trainable."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from llmkit.engine import delta, loading, lora
from llmkit.engine.loading import load_model
from llmkit.engine.precision import Precision
from llmkit.errors import DataError, FidelityError, UsageError

IDS = torch.arange(5, 45).reshape(2, 20)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "a norm saved": {"modules_to_save": ("norm",)},
    "embeddings saved": {"modules_to_save": ("embed_tokens", "lm_head")},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def attached(
    base: Path, *, precision: Precision = "fp32", four_bit: bool = False, seed: int = 1, init: Path | None = None, **shape: Any
) -> Any:
    model = load_model(base, four_bit=precision if four_bit else None)
    options = {"rank": 4, "alpha": 8.0, **shape}
    return lora.attach(model, lora.Shape(**options), seed=seed, precision=precision, base_ref="demo:tiny", init=init)


def trained(model: Any, *, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model


def loss(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss(model))
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(
    kind: str, tied: bool, tiny_model: Path, tied_model: Path
) -> None:
    base = tied_model if tied else tiny_model
    model = attached(base, **KINDS[kind]).eval()
    assert torch.allclose(model(input_ids=IDS).logits, load_model(base)(input_ids=IDS).logits, atol=1e-5)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("modules_to_save" in name for name in names) == ("modules_to_save" in KINDS[kind])
    assert not [name for name in names if "lora_" in name and "lm_head" in name]
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_peft_reads_what_was_saved_as_what_was_trained(
    kind: str, tied: bool, tiny_model: Path, tied_model: Path, tmp_path: Path
) -> None:
    base = tied_model if tied else tiny_model
    model = trained(attached(base, **KINDS[kind])).eval()
    lora.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {delta.CONFIG, delta.WEIGHTS}
    again = PeftModel.from_pretrained(load_model(base), tmp_path).eval()
    assert torch.allclose(again(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-6)
    assert {tensor.dtype for tensor in load_file(tmp_path / delta.WEIGHTS).values()} == {torch.float32}
    config = json.loads((tmp_path / delta.CONFIG).read_text())
    assert config["base_model_name_or_path"] == "demo:tiny"
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_from_another_of_its_shape(kind: str, tied_model: Path, tmp_path: Path) -> None:
    first = trained(attached(tied_model, **KINDS[kind])).eval()
    lora.save(first, tmp_path)
    second = attached(tied_model, seed=2, dropout=0.1, init=tmp_path, **KINDS[kind]).eval()
    assert torch.equal(first(input_ids=IDS).logits, second(input_ids=IDS).logits)
    assert {name for name, w in first.named_parameters() if w.requires_grad} == {
        name for name, w in second.named_parameters() if w.requires_grad
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rank": 8}, "rank 4 there, 8 here"),
        ({"alpha": 4.0}, "alpha 8.0 there, 4.0 here"),
        ({"rslora": True}, "rslora False there, True here"),
        ({"dora": True}, "dora False there, True here"),
        ({"targets": ("q_proj",)}, "targets"),
        ({"targets": ("model.layers.0.self_attn.q_proj",)}, "layers 14 there, 1 here"),
        ({"modules_to_save": ("norm",)}, r"modules_to_save \[\] there, \['model.norm'\] here"),
    ],
)
def test_another_shape_to_start_from_is_refused_with_the_difference(
    change: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path
) -> None:
    lora.save(attached(tiny_model), tmp_path)
    with pytest.raises(UsageError, match=told):
        attached(tiny_model, init=tmp_path, **change)


def test_a_broken_adapter_to_start_from_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        attached(tiny_model, init=tmp_path)
    lora.save(attached(tiny_model), tmp_path)
    (tmp_path / delta.WEIGHTS).write_bytes((tmp_path / delta.WEIGHTS).read_bytes()[:900])
    with pytest.raises(DataError, match="safetensors"):
        attached(tiny_model, init=tmp_path)


@pytest.mark.parametrize("what", ["lora_B", "modules_to_save"])
def test_an_adapter_with_a_nan_is_never_written(what: str, tiny_model: Path, tmp_path: Path) -> None:
    model = attached(tiny_model, modules_to_save=("norm",))
    next(w for name, w in model.named_parameters() if what in name and w.requires_grad).data[0] = torch.nan
    with pytest.raises(FidelityError, match="not finite"):
        lora.save(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("targets", [("q_proj", "query"), (), ("lm_head",), ("proj",)])
def test_targets_that_match_nothing_list_what_would(targets: tuple[str, ...], tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"lora\.targets") as caught:
        attached(tiny_model, targets=targets)
    assert "q_proj" in caught.value.next
    assert "lm_head" not in caught.value.next


def test_modules_to_save_that_match_nothing_list_what_would(tiny_model: Path) -> None:
    for name in ("embeddings", "self_attn", "layernorm"):  # the second has no weights of its own
        with pytest.raises(UsageError, match=f"modules_to_save names no module with weights of its own: {name}") as caught:
            attached(tiny_model, modules_to_save=(name,))
        assert "embed_tokens, " in caught.value.next
    with pytest.raises(UsageError, match=r"up_proj is in lora\.modules_to_save and in lora\.targets"):
        attached(tiny_model, modules_to_save=("up_proj",))


def test_a_module_to_save_is_matched_by_its_whole_name(tiny_model: Path) -> None:
    """peft alone takes every module whose name ends in "norm"."""
    model = attached(tiny_model, modules_to_save=("norm",))
    saved = [name for name, weight in model.named_parameters() if weight.requires_grad and "modules_to_save" in name]
    assert saved == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_named_targets_are_the_only_ones(tiny_model: Path) -> None:
    assert lora.trainable_parameters(attached(tiny_model, targets=("q_proj", "v_proj"))) == 2 * 4 * (64 + 64 + 64 + 32)


@pytest.mark.parametrize("kind", ["plain", "rsLoRA"])
def test_rounding_once_equals_autocast_at_every_step(kind: str, tiny_model: Path) -> None:
    outputs = []
    for precision in get_args(Precision):
        model = trained(attached(tiny_model, precision=precision, **KINDS[kind]))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            outputs.append(model(input_ids=IDS).logits)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("four_bit", [False, True], ids=["bf16", "4-bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_under_bf16(kind: str, four_bit: bool, tied_model: Path) -> None:
    model = attached(tied_model, precision="bf16", four_bit=four_bit, **KINDS[kind]).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 0.05
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def dequantized(base: Path, four_bit: Any) -> Any:
    """The model in `base` in fp32 with the weights that the 4-bit layers of `four_bit`, before any use, stand for."""
    model = load_model(base)
    for name, module in four_bit.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.get_submodule(name).weight.data = weight.float()
    return model


@pytest.mark.parametrize("kind", ["plain", "DoRA"])
def test_a_4_bit_base_trains_alike_after_an_evaluation(kind: str, tiny_model: Path) -> None:
    """bitsandbytes repacks a 4-bit layer at its first forward in eval mode on some CPUs; its gradients are then garbage."""
    base = load_model(tiny_model, four_bit="fp32")
    reference = dequantized(tiny_model, base)
    shape = lora.Shape(rank=4, alpha=8.0, **KINDS[kind])
    options: dict[str, Any] = {"seed": 1, "precision": "fp32", "base_ref": ""}
    model, plain = (trained(lora.attach(one, shape, **options)).train() for one in (base, reference))
    before, wanted = gradients(model), gradients(plain)
    value = loss(model).item()
    assert value == pytest.approx(loss(plain).item(), abs=1e-5)
    with torch.no_grad():
        assert loss(model.eval()).item() == pytest.approx(value, abs=1e-5)
    after = gradients(model.train())
    assert loss(model).item() == value
    assert before.keys() == after.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(before[name], after[name]), name
        assert torch.allclose(before[name], gradient, atol=1e-5), name


def test_a_4_bit_base_is_nf4_doubly_quantized_and_computes_as_asked(tiny_model: Path) -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = load_model(tiny_model, four_bit=precision)  # type: ignore[arg-type]
        layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert len(layers) == 14
        assert {layer.compute_dtype for layer in layers} == {dtype}
        assert {layer.weight.quant_type for layer in layers} == {"nf4"}
        assert all(layer.weight.quant_state.nested for layer in layers)
        rest = [weight for weight in model.parameters() if not isinstance(weight, bitsandbytes.nn.Params4bit)]
        assert {weight.dtype for weight in rest} == {torch.float32}


def test_a_quantized_folder_is_no_base_for_4_bit_training(tiny_model: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="this one is quantized"):
        load_model(tmp_path, four_bit="fp32")
    with pytest.raises(UsageError, match="quantized model"):
        lora.prepare_full(load_model(tmp_path))


def test_a_whole_model_trains_in_fp32_and_is_saved_whole(tied_model: Path, tmp_path: Path) -> None:
    model = lora.prepare_full(load_model(tied_model, dtype=torch.bfloat16))
    assert {(weight.dtype, weight.requires_grad) for weight in model.parameters()} == {(torch.float32, True)}
    trained(model)
    lora.save_full(model, tmp_path)
    again = load_model(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert str(tied_model).encode() not in (tmp_path / "config.json").read_bytes()


def test_a_whole_model_with_a_nan_is_never_written(tiny_model: Path, tmp_path: Path) -> None:
    model = lora.prepare_full(load_model(tiny_model))
    model.model.norm.weight.data[0] = torch.inf
    with pytest.raises(FidelityError, match=r"model\.norm\.weight"):
        lora.save_full(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_loading_knows_how_much_memory_there_is() -> None:
    assert loading.free_memory() > 1 << 20
