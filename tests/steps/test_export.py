"""The export step: what is measured of a file, what is chosen by it, and what is refused or warned of before any work."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from llmkit import progress
from llmkit.artifact import Artifact, Kind
from llmkit.engine import loading, lora
from llmkit.errors import DataError, GateError, UsageError
from llmkit.gguf import convert, imatrix, read, restore
from llmkit.gguf.types import TYPES
from llmkit.steps import export, merge
from tests.conftest import EXCHANGES
from tests.training import Tally

Wrap = Callable[..., Artifact]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, artifact_of: Wrap) -> Mapping[str, Artifact]:
    """A fine-tune so small that rounding it to the base's own grid, Q4_0, takes it away: the case of FACTS."""
    folder = tmp_path_factory.mktemp("export")
    for name in ("base", "merged"):
        (folder / name).mkdir()
    convert.export(tiny_model, folder / "base.gguf", type="q4_0", template=CHATML, name="tiny")
    facts = restore.restore(folder / "base.gguf", folder / "base")
    base = artifact_of(folder / "base", Kind.MODEL, facts=facts)
    model = lora.attach(
        loading.load_model(base.path), lora.Shape(rank=4, alpha=8), seed=1, precision="fp32", base_ref="demo:tiny"
    )
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += 2e-3 * torch.randn_like(weight)
    lora.save(model, folder / "adapter")
    loading.load_tokenizer(base.path).save_pretrained(folder / "adapter")
    adapter = artifact_of(
        folder / "adapter", Kind.ADAPTER, facts={"eos_token": "<|im_end|>"}, inputs={"base": base.fingerprint}
    )
    merge.run(merge.Config(dtype="fp32"), {"base": base, "adapter": adapter}, folder / "merged")
    return {
        "model": artifact_of(folder / "merged", Kind.MODEL),
        "base": base,
        "adapter": adapter,
        "dataset": _dataset(folder / "dataset", artifact_of),
    }


def _dataset(folder: Path, artifact_of: Wrap) -> Artifact:
    folder.mkdir()
    for split, times in (("train", 4), ("valid", 1), ("test", 1)):
        lines = [
            json.dumps(
                {
                    "id": f"{split}-{number}",
                    "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                }
            )
            for number, (question, answer) in enumerate(EXCHANGES * times)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return artifact_of(folder, Kind.DATASET)


def _run(inputs: Mapping[str, Artifact], out: Path, **config: Any) -> Mapping[str, Any]:
    out.mkdir(exist_ok=True)
    return export.run(export.Config.model_validate(config), inputs, out)


def test_a_file_on_the_bases_grid_loses_the_fine_tune_and_the_adapter_over_it_keeps_it(
    inputs: Mapping[str, Artifact], tmp_path: Path
) -> None:
    facts = _run(inputs, tmp_path, types=["f16", "q8_0", "q4_0"], adapter="q4_0")
    kept = {kind: facts["types"][kind]["retention"] for kind in ("f16", "q8_0", "q4_0")}
    assert kept["f16"] > 0.99
    assert kept["f16"] > kept["q8_0"] > kept["q4_0"]
    assert kept["q4_0"] < 0.5
    assert facts["adapter"]["retention"] > 0.95
    for kind in kept:
        assert facts["types"][kind]["next_token_kl"] < 0.01
        assert facts["types"][kind]["bytes"] == (tmp_path / f"model-{kind}.gguf").stat().st_size
    assert facts["yardstick"]["split"] == "valid"
    card, model_file = (tmp_path / "README.md").read_text("utf-8"), (tmp_path / "Modelfile").read_text("utf-8")
    assert f"{kept['q4_0']:.3f}" in card
    assert "adapter.gguf" in card
    assert model_file.startswith("FROM ./model-q8_0.gguf\n")  # the smallest that kept it
    assert "<|im_end|>" in model_file
    written, base = (read.metadata(tmp_path / f"{stem}-q4_0.gguf") for stem in ("model", "base"))
    assert written["general.base_model.0.version"] == inputs["base"].fingerprint
    assert written["general.name"].endswith(", fine-tuned")
    assert base["llmkit.fingerprint"] == inputs["base"].fingerprint, "the base under the LoRA is the base, and says so"
    assert "fine-tuned" not in base["general.name"]
    assert written["llmkit.fingerprint"] == inputs["model"].fingerprint


def test_auto_takes_the_smallest_type_that_keeps_enough(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    facts = _run(inputs, tmp_path, types="auto", min_retention=0.7)
    [(kind, chosen)] = facts["types"].items()
    assert chosen["retention"] >= 0.7
    assert facts["tried"]
    for other in facts["tried"].values():
        assert other["bytes"] <= chosen["bytes"]
        assert other["retention"] < 0.7
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == [f"model-{kind}.gguf"]


def test_auto_fails_where_no_type_keeps_enough(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no type keeps"):
        _run(inputs, tmp_path, types="auto", min_rouge_l=100.0)


def test_auto_over_a_fine_tune_that_changed_nothing_is_refused(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="what a file keeps"):
        _run({**inputs, "model": inputs["base"]}, tmp_path, types="auto")


def test_held_out_dialogues_of_any_length_are_measured(
    inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap
) -> None:
    dataset = Path(shutil.copytree(inputs["dataset"].path, tmp_path / "data"))
    lines = (dataset / "valid.jsonl").read_text("utf-8").splitlines()
    endless = json.loads(lines[0])
    endless["messages"][0]["content"] = "How are you? 你好！" * 400
    (dataset / "valid.jsonl").write_text("\n".join([json.dumps(endless), *lines]) + "\n", "utf-8")
    facts = _run({**inputs, "dataset": artifact_of(dataset, Kind.DATASET)}, tmp_path / "out", types="auto", min_rouge_l=0.0)
    assert facts["yardstick"]["dialogues"] == len(lines) + 1


def test_an_adapter_that_keeps_too_little_fails_the_gate(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    # As where several adapters were merged: the one in the file is not all that was learnt.
    halved = {**inputs, "model": inputs["base"], "base": inputs["model"]}
    with pytest.raises(GateError, match=r"q8_0\+lora keeps"):
        _run(halved, tmp_path, types=["q8_0"], adapter="q8_0", min_retention=0.5)


def test_a_floor_that_a_named_type_misses_is_a_failed_gate(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(GateError, match="q4_0 keeps"):
        _run(inputs, tmp_path, types=["q8_0", "q4_0"], min_retention=0.5)


def test_a_lost_fine_tune_is_warned_of(inputs: Mapping[str, Artifact], tmp_path: Path, notes: list[str]) -> None:
    _run(inputs, tmp_path, types=["q4_0"])
    assert any("q4_0 lost the fine-tune" in note and "export.adapter: q4_0" in note for note in notes)


def test_the_bases_own_grid_is_warned_of_before_any_work(inputs: Mapping[str, Artifact], notes: list[str]) -> None:
    base, grid = inputs["base"].path, inputs["base"].facts["gguf_types"]
    export.check(export.Config(types=("q4_0", "q8_0")), base, template=None, tuned=True, grid=grid)
    [warning] = notes
    assert "100% of the base's weights lie on q4_0's own grid" in warning
    assert "export.adapter: q4_0" in warning
    export.check(export.Config(types=("q8_0",)), base, template=None, tuned=True, grid=grid)
    export.check(export.Config(types=("q4_0",)), base, template=None, tuned=False, grid=grid)
    assert len(notes) == 1


def test_without_data_a_file_is_proved_but_nothing_is_measured(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    facts = _run({"model": inputs["model"]}, tmp_path, types=["q4_k_m"])
    assert facts["types"]["q4_k_m"]["retention"] is None
    assert facts["types"]["q4_k_m"]["next_token_kl"] < 0.01
    with pytest.raises(UsageError, match="chooses by what a file keeps"):
        _run({"model": inputs["model"]}, tmp_path, types="auto")


def test_what_memory_cannot_hold_is_shipped_unmeasured_and_says_so(
    inputs: Mapping[str, Artifact], tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda: 100_000)
    facts = _run(inputs, tmp_path, types=["q8_0"])
    assert facts["types"]["q8_0"]["retention"] is facts["types"]["q8_0"]["next_token_kl"] is None
    assert any("GB of memory" in note for note in notes)


def test_a_licence_is_taken_from_the_bases_model_card(
    inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap
) -> None:
    folder = Path(shutil.copytree(inputs["base"].path, tmp_path / "base"))
    (folder / "README.md").write_text("---\nlanguage: zh\nlicense: apache-2.0\n---\n# A model\nlicense: none\n", "utf-8")
    (tmp_path / "out").mkdir()
    given = {"model": inputs["model"], "base": artifact_of(folder, Kind.MODEL)}
    _run(given, tmp_path / "out", types=["q8_0"], max_shard_size="100KB")
    assert 'license: "apache-2.0"' in (tmp_path / "out/README.md").read_text("utf-8")
    [first, *rest] = sorted((tmp_path / "out").glob("*.gguf"))
    assert read.metadata(first)["general.license"] == "apache-2.0"
    assert rest
    assert not (tmp_path / "out/Modelfile").exists()


def test_an_importance_matrix_is_measured_kept_and_used_again(
    inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap
) -> None:
    first = _run(inputs, tmp_path / "first", types=["q4_0"], imatrix=True)
    assert first["imatrix"]["tensors"] == 14  # seven in each of two layers
    (tmp_path / "given").mkdir()
    kept = (tmp_path / "first/imatrix.gguf").rename(tmp_path / "given/imatrix.gguf")
    given = Artifact(kept, artifact_of(tmp_path / "given", Kind.SOURCE).manifest)
    _run({**inputs, "imatrix": given}, tmp_path / "second", types=["q4_0"], imatrix=str(kept))
    _run(inputs, tmp_path / "plain", types=["q4_0"])
    one, two, plain = ((tmp_path / name / "model-q4_0.gguf").read_bytes() for name in ("first", "second", "plain"))
    assert one == two
    assert one != plain
    assert imatrix.read(kept).names == imatrix.read(tmp_path / "second/imatrix.gguf").names


def test_an_importance_matrix_of_any_text(inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap) -> None:
    (tmp_path / "given").mkdir()
    text = tmp_path / "given/any.txt"
    text.write_text("Hello, how are you? 你好。\n" * 20, "utf-8")
    given = Artifact(text, artifact_of(tmp_path / "given", Kind.SOURCE).manifest)
    model = {"model": inputs["model"], "imatrix": given}
    assert _run(model, tmp_path / "out", types=["q4_0"], imatrix=str(text))["imatrix"]["tensors"] == 14


def test_what_needs_more_than_is_there_is_refused_before_any_work(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    base = inputs["base"].path
    with pytest.raises(UsageError, match="iq2_xxs needs an importance matrix"):
        export.check(export.Config(types=("iq2_xxs",)), base, template=None, tuned=True)
    with pytest.raises(UsageError, match="LoRA"):
        export.check(export.Config(adapter="q4_0"), base, template=None, tuned=True)
    with pytest.raises(UsageError, match="auto"):
        export.check(export.Config(types="auto"), base, template=None, tuned=False)
    with pytest.raises(UsageError, match="training data"):
        export.check(export.Config(imatrix=True), base, template=None, tuned=False)
    grid = inputs["base"].facts["gguf_types"]
    guided = export.Config(types=("iq2_xxs",), imatrix=True)
    export.check(guided, base, template=None, tuned=True, data=True, grid=grid)
    with pytest.raises(UsageError, match="there is none"):
        _run({"model": inputs["model"]}, tmp_path, types=["q4_0"], imatrix=True)


def test_without_held_out_dialogues_nothing_is_measured_and_no_gate_is_passed(
    inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap, notes: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text("", "utf-8")
    without = {**inputs, "dataset": artifact_of(tmp_path / "data", Kind.DATASET)}
    facts = _run(without, tmp_path / "out", types=["q8_0"])
    assert facts["types"]["q8_0"]["retention"] is None
    assert any("no held-out dialogue" in note for note in notes)
    with pytest.raises(UsageError, match="cannot be measured"):
        _run(without, tmp_path / "gate", types=["q8_0"], min_retention=0.5)


def test_a_base_of_another_vocabulary_and_a_quantized_model_are_refused(
    inputs: Mapping[str, Artifact], tmp_path: Path, artifact_of: Wrap
) -> None:
    folder = Path(shutil.copytree(inputs["base"].path, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}), "utf-8"
    )
    with pytest.raises(DataError, match="quantized already"):
        export.check(export.Config(), folder, template=None, tuned=False)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 7}), "utf-8")
    with pytest.raises(DataError):
        _run({**inputs, "base": artifact_of(folder, Kind.MODEL)}, tmp_path / "out", types=["q8_0"])


def test_a_model_without_a_template_is_exported_with_one_of_ours(inputs: Mapping[str, Artifact], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(inputs["base"].path, tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="no chat template"):
        export.check(export.Config(), folder, template="model", tuned=False)
    _run({"model": Artifact(folder, inputs["base"].manifest)}, tmp_path / "out", types=["q8_0"], template="chatml")
    assert "<|im_start|>" in read.metadata(tmp_path / "out/model-q8_0.gguf")["tokenizer.chat_template"]


def test_a_mistyped_type_is_told_its_likeliest_name() -> None:
    with pytest.raises(ValidationError, match="did you mean q4_k_m"):
        export.Config.model_validate({"types": ["q4_km"]})


@pytest.mark.parametrize(
    ("size", "bytes_"), [("4GB", 4 * 10**9), ("500MB", 5 * 10**8), ("1.5 G", 15 * 10**8), ("20kb", 20_000), (None, None)]
)
def test_sizes_are_read(size: str | None, bytes_: int | None) -> None:
    assert export.Config(max_shard_size=size).max_shard_bytes == bytes_


@pytest.mark.parametrize(
    "config",
    [
        {"types": []},
        {"types": ["q8_0", "q8_0"]},
        {"types": ["q9"]},
        {"types": "all"},
        {"max_shard_size": "0GB"},
        {"max_shard_size": "4"},
        {"min_retention": 2},
    ],
)
def test_a_config_that_means_nothing_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        export.Config.model_validate(config)


def test_every_type_has_a_name_in_the_recipe() -> None:
    assert set(get_args(export.Type)) == set(TYPES)
    assert set(export.CANDIDATES) <= set(TYPES)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    class Sink(Tally):
        def note(self, text: str) -> None:
            found.append(text)

    monkeypatch.setattr(progress, "_sink", Sink())
    return found
