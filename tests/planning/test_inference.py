"""Keys and values, against those that transformers keeps; and the smaller the type, the less memory."""

from pathlib import Path

import pytest
import torch

from llmkit.engine import loading
from llmkit.planning import config, fits, inference, shapes
from tests.gguf import families
from tests.planning.shared import COPIES, GB, shape_of

TOKENS = 40  # beyond the tiny models' windows of 16


@pytest.mark.parametrize("family", ["llama3", "gemma2", "gemma3", "qwen3", "phi3"])
def test_the_cache_is_as_large_as_transformers_own(family: str, tmp_path: Path) -> None:
    folder = getattr(families, family)(tmp_path)
    model = loading.load_model(folder)
    with torch.no_grad():
        kept = model(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=True).past_key_values
    held = sum(one.nbytes for layer in kept.layers for one in (layer.keys, layer.values))
    shape = shapes.of_config(config.find(str(folder)).raw, where=family)
    # A layer with a window drops the token that the next one pushes out.
    pushed_out = 2 * 4 * shape.key * sum(window is not None for window in shape.windows)
    assert held == inference.cache(shape, TOKENS, width=4) - pushed_out


@pytest.mark.parametrize("name", COPIES)
def test_a_longer_conversation_needs_more_and_a_smaller_type_less(name: str) -> None:
    shape = shape_of(name)
    for kind in fits.SPEAKING:
        assert inference.need(shape, kind, context=1024).total < inference.need(shape, kind, context=2048).total
    needs = [inference.need(shape, kind, context=2048).parts["weights"] for kind in fits.SPEAKING[3:]]
    assert needs == sorted(needs, reverse=True)


def test_the_device_table_says_of_27_billion_parameters_what_is_commonly_found() -> None:
    table = fits.table(shape_of("gemma-2-27b"), context=4096)
    speaking = {row["precision"]: row for row in table["inference"]}
    assert next(name for name, row in speaking.items() if row["fits"]["24 GB card"]) == "q5_k_m"
    assert speaking["bf16"]["fits"]["80 GB card"]
    assert not any(row["fits"]["8 GB board"] for row in speaking.values())
    assert abs(speaking["q4_k_m"]["parts"]["weights"] - 16.64 * GB) < 0.2 * GB  # as published files of this type are


def test_what_fits_a_device_fits_two_of_it() -> None:
    for name in ("gemma-2-9b", "Llama-2-70b"):
        table = fits.table(shape_of(name), context=4096)
        for row in (*table["inference"], *table["training"]):
            many = [row["fits"][device] for device in ("80 GB card", "2×80 GB", "4×80 GB", "8×80 GB")]
            assert many == sorted(many)
