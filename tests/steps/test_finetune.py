"""The finetune step: its config, its checks, and one run from artifact to adapter."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.artifact import Artifact, Kind
from llmkit.errors import DataError, UsageError
from llmkit.steps import finetune

FAST = {"template": "chatml", "max_steps": 2, "batch_size": 4, "lora": {"rank": 2}}


@pytest.fixture
def base(tiny_model: Path, artifact_of: Callable[..., Artifact]) -> Artifact:
    return artifact_of(tiny_model, Kind.MODEL)


@pytest.mark.parametrize("objective", ["sft", "orpo"])
def test_a_dataset_and_a_base_become_an_adapter(
    objective: str, base: Artifact, tiny_dataset: Callable[..., Artifact], tmp_path: Path
) -> None:
    config = finetune.Config(**FAST, objective=objective)
    out = tmp_path / "out"
    out.mkdir()
    facts = finetune.run(config, {"dataset": tiny_dataset(rejected=objective == "orpo"), "base": base}, out)
    assert (facts["objective"], facts["steps"], facts["records"]) == (objective, 2, 12)
    assert (out / "adapter_model.safetensors").stat().st_size > 0
    assert not (out / "checkpoints").exists()


def test_numbers_may_be_written_as_yaml_reads_them() -> None:
    config = finetune.Config.model_validate({"lr": "1e-4", "epochs": "2", "lora": {"targets": ["q_proj"]}})
    assert (config.lr, config.epochs, config.lora.targets) == (1e-4, 2.0, ("q_proj",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"batch_size": 8, "micro_batch": 3},
        {"objective": "dpo"},
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
