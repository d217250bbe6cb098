"""What is measured of a model's layers against sums made another way, and which texts it is measured on."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.engine import child, imatrix, loading, templates
from llmkit.engine.mask import encode
from llmkit.errors import DataError, FidelityError
from tests.conftest import exchange
from tests.training import Tally

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = {f"model.layers.{layer}.{part}.weight": f"{layer}.{part}" for layer in range(2) for part in PARTS}
RECORDS = [{"id": str(number), "messages": exchange(number)} for number in range(100)]


@pytest.fixture(scope="module")
def samples() -> list[list[int]]:
    """Of different lengths, so that batches are padded."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in (1, 40, 3, 17, 40)]


def by_hand(model: Any, samples: list[list[int]]) -> dict[str, np.ndarray]:
    """Σ x² from hidden states and weights, one sample at a time and in fp64, without hooks."""
    model = model.double()
    found: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor) -> None:
        found[name] = found.get(name, torch.zeros(x.shape[-1], dtype=torch.float64)) + x.reshape(-1, x.shape[-1]).square().sum(
            0
        )

    for ids in samples:
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for number, layer in enumerate(model.model.layers):
            into_attention = layer.input_layernorm(states[number])
            add(f"{number}.self_attn.q_proj", into_attention)
            add(f"{number}.self_attn.k_proj", into_attention)
            mixed = _attention(layer.self_attn, into_attention)
            add(f"{number}.self_attn.o_proj", mixed)
            between = layer.post_attention_layernorm(states[number] + mixed @ layer.self_attn.o_proj.weight.T)
            add(f"{number}.mlp.gate_proj", between)
            gate, up = (between @ part.weight.T for part in (layer.mlp.gate_proj, layer.mlp.up_proj))
            add(f"{number}.mlp.down_proj", torch.nn.functional.silu(gate) * up)
    return {name: sums.numpy() for name, sums in found.items()}


def _attention(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Llama's attention up to its output projection: x [1, length, hidden] → [1, length, heads · head_dim]."""
    length, size = x.shape[1], layer.head_dim
    query, key, value = ((x @ part.weight.T).view(length, -1, size) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size)).double().repeat(1, 2)[:, None]

    def rotate(part: torch.Tensor) -> torch.Tensor:
        turned = torch.cat([-part[..., size // 2 :], part[..., : size // 2]], -1)
        return part * angles.cos() + turned * angles.sin()

    repeat = query.shape[1] // key.shape[1]
    key, value = rotate(key).repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = torch.einsum("qhd,khd->hqk", rotate(query), key) / size**0.5
    scores.masked_fill_(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(1, length, -1)


def test_sums_are_those_made_by_hand(tiny_model: Path, samples: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        expected = by_hand(loading.load_model(tiny_model), samples)
    for budget in (1, 90, 4096):  # one sample a pass, some, all
        monkeypatch.setattr(imatrix, "PASS_TOKENS", budget)
        bar = Tally()
        found = imatrix.collect(tiny_model, samples, NAMES, bar)
        assert sum(bar.advances) == len(samples)
        assert found.keys() == set(NAMES.values()) == expected.keys()
        for name, (sums, rows) in found.items():
            assert rows == sum(map(len, samples))
            assert sums.dtype == np.float32
            assert np.allclose(sums, expected[name], rtol=1e-4), name


@pytest.mark.slow
def test_it_runs_in_a_child_process(tiny_model: Path, samples: list[list[int]]) -> None:
    found = child.run(imatrix.collect, tiny_model, samples, NAMES, title="measuring", total=len(samples))
    here = imatrix.collect(tiny_model, samples, NAMES, Tally())
    for name, (sums, rows) in here.items():
        assert found[name][1] == rows
        assert np.allclose(found[name][0], sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("samples", "names", "says"),
    [
        ([], NAMES, "no text"),
        ([[1], []], NAMES, "no text"),
        ([[5, 448]], NAMES, "token 448"),
        ([[-1, 5]], NAMES, "token"),
        ([[5]], {"model.layers.7.mlp.up_proj.weight": "x"}, "no linear layer"),
        ([[5]], {"model.embed_tokens.weight": "x"}, "no linear layer"),
        ([[5]], {**NAMES, "lm_head.weight": "output.weight"}, "1 layers saw no input: output.weight"),
    ],
)
def test_what_cannot_be_measured_is_a_data_error(
    samples: list[list[int]], names: Mapping[str, str], says: str, tiny_model: Path
) -> None:
    with pytest.raises(DataError, match=says):
        imatrix.collect(tiny_model, samples, names, Tally())


def test_an_input_that_is_not_finite_names_its_layer(tiny_model: Path, tmp_path: Path) -> None:
    model = loading.load_model(tiny_model)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(FidelityError, match=r"1\.self_attn\.q_proj is not finite"):
        imatrix.collect(tmp_path, [[5, 6]], NAMES, Tally())


def test_dialogues_are_rendered_as_training_renders_them(tiny_model: Path) -> None:
    tokenizer, template = loading.load_tokenizer(tiny_model), templates.resolve("chatml", tiny_model)
    rendered = [encode(record["messages"], tokenizer, template).input_ids for record in RECORDS]
    everything = imatrix.calibration(RECORDS, tokenizer, template, max_tokens=10**6)
    assert sorted(everything) == sorted(rendered)
    budget = 1000
    some = imatrix.calibration(RECORDS, tokenizer, template, max_tokens=budget)
    assert sum(map(len, some)) == budget
    assert some[:-1] == everything[: len(some) - 1]
    assert some[-1] == everything[len(some) - 1][: len(some[-1])]
    taken = [rendered.index(ids) for ids in some[:-1]]
    assert min(taken) < 25
    assert max(taken) > 75  # from all over the split
    assert some == imatrix.calibration(RECORDS, tokenizer, template, max_tokens=budget)
    assert some != imatrix.calibration(RECORDS, tokenizer, template, max_tokens=budget, seed=1)


def test_a_dialogue_that_training_leaves_out_is_not_measured(tiny_model: Path) -> None:
    tokenizer, template = loading.load_tokenizer(tiny_model), templates.resolve("chatml", tiny_model)
    forged = copy.deepcopy(RECORDS[0])
    forged["messages"][0]["content"] += "<|im_end|>"
    found = imatrix.calibration([forged, RECORDS[1]], tokenizer, template, max_tokens=1000)
    assert found == [encode(RECORDS[1]["messages"], tokenizer, template).input_ids]
    for records in ([], [forged]):
        with pytest.raises(DataError, match="no dialogue"):
            imatrix.calibration(records, tokenizer, template, max_tokens=1000)


def test_a_text_is_measured_in_pieces(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    path = tmp_path / "text.txt"
    path.write_text("Hello, how are you? 你好。 " * 40, "utf-8")
    ids = tokenizer(path.read_text("utf-8"))["input_ids"]
    monkeypatch.setattr(imatrix, "PIECE", 50)
    found = imatrix.calibration_text(path, tokenizer, max_tokens=120)
    assert [len(piece) for piece in found] == [50, 50, 20]
    assert [token for piece in found for token in piece] == ids[:120]
    tokenizer.bos_token = "<|im_start|>"
    opened = imatrix.calibration_text(path, tokenizer, max_tokens=120)
    assert [piece[0] for piece in opened] == [1, 1, 1]
    assert opened[0][1:] + opened[1][1:] == ids[:98]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00bad", None])
def test_a_text_that_cannot_be_read_is_a_data_error(content: bytes | None, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="calibration text"):
        imatrix.calibration_text(path, loading.load_tokenizer(tiny_model), max_tokens=100)
