"""The finetune step: its config, its checks, and one run from artifact to adapter."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.steps import finetune, merge

FAST = {"template": "chatml", "max_steps": 2, "batch_size": 4, "lora": {"rank": 2}}


@pytest.fixture
def base(tiny_model: Path, artifact_of: Callable[..., Artifact]) -> Artifact:
    return artifact_of(tiny_model, Kind.MODEL)


@pytest.mark.parametrize(
    ("objective", "method"),
    [("sft", "lora"), ("orpo", "lora"), ("dpo", "lora"), ("kto", "lora"), ("sft", "qlora"), ("orpo", "full"), ("dpo", "full")],
)
def test_a_dataset_and_a_base_become_what_can_be_merged(
    objective: str, method: str, base: Artifact, tiny_dataset: Callable[..., Artifact], artifact_of: Any, tmp_path: Path
) -> None:
    """Every objective and every method, and the merge of what they made."""
    config = finetune.Config(**FAST, objective=objective, method=method, lr=1e-3)
    out, merged = tmp_path / "out", tmp_path / "merged"
    out.mkdir()
    merged.mkdir()
    facts = finetune.run(config, {"dataset": tiny_dataset(rejected=objective != "sft"), "base": base}, out)
    assert (facts["objective"], facts["method"], facts["steps"]) == (objective, method, 2)
    assert facts["records"] == (24 if objective == "kto" else 12)
    made = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert (out / made).stat().st_size > 0
    assert not (out / "checkpoints").exists()
    assert "<svg" in (out / "report.html").read_text("utf-8")
    adapter = artifact_of(out, Kind.ADAPTER, facts=facts, inputs={"base": base.fingerprint})
    found = merge.run(merge.Config(dtype="fp32"), {"adapter": adapter, "base": base}, merged)
    assert found["adapter_kl"] > 0
    assert (merged / "chat_template.jinja").exists()


def test_two_processes_make_the_adapter_that_one_makes(
    base: Artifact, tiny_dataset: Callable[..., Artifact], tmp_path: Path
) -> None:
    logs, dataset = [], tiny_dataset()
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        config = finetune.Config(**FAST, processes=processes, precision="fp32")
        facts = finetune.run(config, {"dataset": dataset, "base": base}, out)
        assert facts["processes"] == processes
        logs.append([json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()])
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        assert all(one[key] == pytest.approx(two[key], abs=1e-4) for key in one)


def test_an_adapter_of_another_base_is_no_start(
    base: Artifact, tiny_dataset: Callable[..., Artifact], artifact_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    init = artifact_of(tmp_path, Kind.ADAPTER, inputs={"base": "another"})
    with pytest.raises(UsageError, match="another base"):
        finetune.run(finetune.Config(**FAST), {"dataset": tiny_dataset(), "base": base, "init": init}, tmp_path)


@pytest.mark.parametrize("asked", [{"report_to": ["swanlab"]}, {"strategy": "deepspeed"}])
def test_a_missing_package_is_found_before_training(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="not installed") as caught:
        finetune.check(finetune.Config(template="chatml", **asked), None)
    assert caught.value.next.startswith("pip install")


def test_numbers_may_be_written_as_yaml_reads_them() -> None:
    config = finetune.Config.model_validate({"lr": "1e-4", "epochs": "2", "lora": {"targets": ["q_proj"]}})
    assert (config.lr, config.epochs, config.lora.targets) == (1e-4, 2.0, ("q_proj",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"batch_size": 8, "micro_batch": 3},
        {"objective": "ppo"},
        {"objective": "orpo", "on_overlong": "split"},
        {"batch_size": 8, "processes": 3},
        {"method": "full", "init_adapter": "somewhere"},
        {"lora": {"rank": 0}},
        {"lora": {"targets": "q_proj"}},
        {"unknown": 1},
        {"epochs": "many"},
        {"warmup": 1},
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        finetune.Config.model_validate(wrong)


def test_every_option_says_what_it_means() -> None:
    for model in (finetune.Config, finetune.Lora):
        assert all(field.description for field in model.model_fields.values())


def test_orpo_without_rejected_answers_names_the_way_out(
    base: Artifact, tiny_dataset: Callable[..., Artifact], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="12 of 12 have none") as caught:
        finetune.run(finetune.Config(**FAST, objective="orpo"), {"dataset": tiny_dataset(), "base": base}, tmp_path)
    assert "data.pairs: {rejected: shuffle | generate}" in caught.value.next


def test_an_empty_dataset_is_a_data_error(base: Artifact, tiny_dataset: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training record"):
        finetune.run(finetune.Config(**FAST), {"dataset": tiny_dataset([]), "base": base}, tmp_path)


def test_a_missing_template_is_found_before_training(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        finetune.check(finetune.Config(), tiny_model)
    finetune.check(finetune.Config(), None)
    finetune.check(finetune.Config(template="chatml"), tiny_model)
    with pytest.raises(UsageError):
        finetune.check(finetune.Config(template="nowhere.jinja"), None)


def test_importing_and_checking_load_no_torch(tiny_model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llmkit.steps import finetune;"
        "assert not {'torch', 'numpy', 'jinja2'} & set(sys.modules);"
        f"finetune.check(finetune.Config(template='chatml'), Path({str(tiny_model)!r}));"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
