"""What steps need against what they were seen to take, and advice that is true."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.evaluation import settings as evaluation
from llmkit.planning import advice, steps
from llmkit.planning.data import Data, Sample
from llmkit.planning.steps import World
from llmkit.steps import clean, export, merge, pairs, quantize
from tests.planning.shared import COPIES, GB, machine, training, world

TOLERANCE = 0.3
_PAIRS = pairs.Config(rejected="generate")
SETTINGS: dict[str, dict[str, Any]] = {
    "clean": clean.Config().model_dump(mode="json"),
    "pairs": _PAIRS.model_dump(mode="json"),
    "finetune": training(),
    "merge": merge.Config().model_dump(mode="json"),
    "quantize": quantize.Config(bits=4).model_dump(mode="json"),
    "export": export.Config(types=("q8_0", "q5_k_m", "q4_k_m"), adapter="q4_k_m").model_dump(mode="json"),
    "eval": evaluation.Config(max_new_tokens=32, max_samples=100, batch_size=50).model_dump(mode="json"),
}
# The quickstart's, on two cores: {step: (peak resident bytes of its process, bytes of what it wrote)}.
SEEN = {"merge": (2_305e6, 569e6), "quantize": (2_447e6, 425e6), "eval": (3_999e6, 0.25e6)}


@pytest.mark.parametrize("verb", SEEN)
def test_the_quickstart_s_steps_took_what_is_planned(verb: str) -> None:
    tests = Data([Sample(200, 40)], 134, 30_000, "clean")
    here = replace(world("gemma-3-270m"), tests=tests, quantized=("int8", "nf4"), types=("q8_0", "q4_k_m"))
    need = steps.of(verb, SETTINGS[verb], here)
    memory, disk = SEEN[verb]
    assert abs(need.memory.total / memory - 1) < TOLERANCE
    assert abs(need.writes - disk) < 0.05 * disk + 5e6


def test_export_writes_the_bytes_that_it_was_seen_to_write() -> None:
    need = steps.of("export", SETTINGS["export"], world("gemma-3-270m"))
    written = 7_611_904 + 2 * 253_114_464 + 260_026_464 + 291_545_184
    assert abs(need.writes / written - 1) < 0.02


@pytest.mark.parametrize("verb", SETTINGS)
@pytest.mark.parametrize("name", COPIES)
def test_every_step_of_every_model_has_a_need(verb: str, name: str) -> None:
    for gpu in (0, 80 * GB):
        need = steps.of(verb, SETTINGS[verb], world(name, gpu=gpu))
        assert need.memory.total > 0
        assert need.writes >= 0
        assert need.to_json()["memory"]["total"] == sum(need.memory.parts.values())
        if need.time:
            assert 0 <= need.time.low <= need.time.high


@settings(deadline=None)
@given(
    st.sampled_from(["finetune", "eval", "merge", "export", "quantize", "pairs"]),
    st.sampled_from(COPIES),
    st.integers(1, 200),
    st.integers(0, 80),
    st.integers(1, 400),
)
def test_an_advice_really_fits_and_is_given_only_where_something_lacks(
    verb: str, name: str, memory: int, gpu: int, disk: int
) -> None:
    here = world(name, memory=memory * GB, gpu=gpu * GB, disk=disk * GB)
    found = advice.advise(verb, SETTINGS[verb], here)
    missing = advice.lacks(steps.of(verb, SETTINGS[verb], here), here.machine)
    assert (found is None) == (missing == "")
    if found and found.changes:
        assert advice.lacks(steps.of(verb, {**SETTINGS[verb], **found.changes}, here), here.machine) == ""
        assert found.options(verb).startswith("--set ")
    elif found:
        assert found.otherwise


def test_what_does_not_fit_a_24_gb_card_with_lora_fits_with_qlora() -> None:
    here = replace(world("gemma-2-9b", gpu=24 * GB), data=Data([Sample(200, 300)] * 100, 100, 1, "here"))
    found = advice.advise("finetune", training(batch_size=8), here)
    assert found
    assert found.changes["method"] == "qlora"


def test_training_retreats_as_the_engine_does_where_gpu_memory_runs_out() -> None:
    settings = training(objective="orpo", micro_batch=2, batch_size=16, max_length=8192)
    roomy, card = steps.of("finetune", settings, world("gemma-2-9b", gpu=10**13)), world("gemma-2-9b", gpu=80 * GB)
    need = steps.of("finetune", settings, card)
    assert roomy.memory.required > 80 * GB >= need.memory.required
    assert not roomy.notes[1:]
    assert "gradient checkpointing, 2 sequences at once" in need.notes[1]
    assert advice.advise("finetune", settings, card) is None


def test_an_export_whose_largest_file_does_not_fit_keeps_those_that_do() -> None:
    here = world("gemma-2-27b", memory=25 * GB)
    found = advice.advise("export", export.Config(types=["q8_0", "q6_k", "q5_k_m", "q4_k_m"]).model_dump(mode="json"), here)
    assert found
    assert found.lacks == "memory"
    assert found.options("export") == "--set export.types=[q6_k,q5_k_m,q4_k_m]"


def test_a_step_that_ran_here_before_is_told_by_what_it_took() -> None:
    here = replace(world("gemma-3-270m"), before={"wall_seconds": 100.0})
    need = steps.of("merge", SETTINGS["merge"], here)
    assert need.time
    assert need.time.how == "measured here"
    assert need.time.low < 100 < need.time.high


@pytest.mark.parametrize("facts", [{"wall_seconds": -1}, {"wall_seconds": "long"}, {"wall_seconds": float("nan")}, {}])
def test_a_manifest_s_nonsense_is_no_measurement(facts: dict[str, Any]) -> None:
    need = steps.of("merge", SETTINGS["merge"], World(world("gemma-3-270m").shape, machine(), before=facts))
    assert need.time
    assert need.time.how == "computed"
