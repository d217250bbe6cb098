"""Peak memory of a fine-tune: the parts against peft and the engine's own numbers, the sum against a real run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.planning import config, data, shapes, steps
from llmkit.planning import training as train
from llmkit.planning.training import Load, Lora, Run
from tests.planning.shared import COPIES, machine, shape_of, training

RUN = Run("lora", "bf16", Load(2048, 1024, 2, 1024), checkpointing=True)
TOLERANCE = 0.25
STEPS = 6


def test_its_constants_are_those_of_the_engine() -> None:
    from llmkit.engine import loss, packing

    assert (train.CHUNK_ELEMENTS, train.TILE, train.SHORT) == (loss.CHUNK_ELEMENTS, loss.TILE, packing.SHORT)


@pytest.mark.parametrize(
    "lora",
    [
        Lora(),
        Lora(rank=4, targets=("q_proj", "v_proj")),
        Lora(targets=("mlp.down_proj",), dora=True),
        Lora(modules_to_save=("embed_tokens",)),
    ],
)
def test_as_many_numbers_learn_as_peft_makes(tiny_model: Path, lora: Lora) -> None:
    from llmkit.engine import loading
    from llmkit.engine import lora as real

    shape = real.Shape(
        rank=lora.rank, alpha=32, targets=lora.targets, dora=lora.dora, modules_to_save=tuple(lora.modules_to_save)
    )
    wrapped = real.attach(loading.load_model(tiny_model), shape, seed=0, precision="fp32", base_ref="")
    planned = shapes.of_config(config.find(str(tiny_model)).raw, where="tiny")
    assert train.trainable(planned, replace(RUN, lora=lora)) == real.trainable_parameters(wrapped)


@pytest.mark.parametrize("name", COPIES)
def test_each_way_to_save_memory_saves_some(name: str) -> None:
    shape = shape_of(name)
    peak = train.training(shape, RUN).total
    assert train.training(shape, replace(RUN, checkpointing=False)).total > peak
    assert train.training(shape, replace(RUN, precision="fp32")).total > peak
    assert train.training(shape, replace(RUN, method="full")).total > peak
    assert train.loading(shape, replace(RUN, method="qlora")).total < train.loading(shape, RUN).total
    assert train.training(shape, replace(RUN, load=Load(512, 256, 1, 512))).total < peak


def test_the_quickstart_s_peak_is_within_a_quarter_of_what_was_measured() -> None:
    """Measured once, over its 120 steps on two cores: 3,297 MB. The slow test below measures anew."""
    load = Load(692, 480, 8, 155)  # its largest batch, by its own log
    found = train.peak(shape_of("gemma-3-270m"), replace(RUN, load=load, checkpointing=False, rows=120)).total
    assert abs(found / 3.297e9 - 1) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_real_fine_tune_peaks_within_a_quarter_of_the_plan(gemma_270m: Path, tmp_path: Path, method: str) -> None:
    dataset = cleaned(tmp_path)
    settings = training(template="gemma", lr=3e-4, batch_size=8, max_steps=STEPS, seed=42, method=method)
    shape = shapes.of_config(config.find(str(gemma_270m)).raw, where="gemma")
    known = data.of_split(dataset / "train.jsonl", vocabulary=shape.vocabulary)
    world = steps.World(shape, replace(machine(), bf16=bf16_here()), data=known)
    planned = steps.of("finetune", settings, world).memory.total
    assert abs(planned / measured(settings, gemma_270m, dataset, tmp_path) - 1) < TOLERANCE


def cleaned(folder: Path) -> Path:
    """The quickstart's dataset."""
    from llmkit import origin
    from llmkit.steps import clean

    found = origin.source("demo:chatterbot", languages=["zh", "en"])
    out = folder / "clean"
    out.mkdir()
    split: Any = {"train": 0.8, "valid": 0.1, "test": 0.1}
    clean.run(clean.Config(min_turns=2, max_chars=256, split=split, seed=42), {"source.0": found.ready or found.fetch()}, out)
    return out


def bf16_here() -> bool:
    from llmkit.engine import precision

    return precision.choose("auto") == "bf16"


WORK = """
import json, sys
from llmkit import memory
from llmkit.steps import finetune
class Bar:
    def advance(self, *_, **__): pass
finetune.work(json.loads(sys.argv[1]), Bar())
print(memory.peak_bytes())
"""


def measured(settings: dict[str, Any], base: Path, dataset: Path, folder: Path) -> int:
    """The largest resident set of a process that does what the finetune step's does."""
    out = folder / "adapter"
    out.mkdir()
    job = {"config": settings, "dataset": str(dataset), "base": str(base), "base_ref": "", "init": None, "out": str(out)}
    done = subprocess.run(
        [sys.executable, "-c", WORK, json.dumps(job)], capture_output=True, text=True, check=True, timeout=900
    )
    return int(done.stdout.split()[-1])
