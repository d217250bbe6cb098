"""The quantize step's settings: what goes together, and a name for each combination."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmkit.steps.quantize import Config


def test_bits_alone_mean_what_they_meant() -> None:
    assert (Config(bits=8).name, Config(bits=4).name) == ("int8", "nf4")


def test_every_combination_has_a_name_of_its_own() -> None:
    skips = ((), ("down_proj",), ("down_proj", "up_proj"), ("layers.1",))
    four = [
        Config(bits=4, quant_type=kind, double_quant=double, skip=skip)  # type: ignore[arg-type]
        for kind, double, skip in product(("nf4", "fp4"), (False, True), skips)
    ]
    names = [one.name for one in [*four, *(Config(bits=8, skip=skip) for skip in skips)]]
    assert len(set(names)) == len(names)
    assert {"int8", "nf4", "fp4", "nf4-dq", "fp4-dq"} < set(names)
    assert all(name.replace("-", "").isalnum() for name in names)


@given(st.lists(st.sampled_from(["a", "b", "c.d"]), max_size=5))
def test_the_order_of_what_is_skipped_names_nothing_else(skip: list[str]) -> None:
    assert Config(bits=4, skip=tuple(skip)).name == Config(bits=4, skip=tuple(sorted(set(skip)))).name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "bits"),
        ({"bits": 5}, "bits"),
        ({"bits": 8, "quant_type": "fp4"}, "go with bits: 4"),
        ({"bits": 8, "double_quant": True}, "go with bits: 4"),
        ({"bits": 4, "quant_type": "int4"}, "quant_type"),
        ({"bits": 4, "skip": ["down_proj|up_proj"]}, "skip"),
        ({"bits": 4, "skip": ["(a+)+$"]}, "skip"),
        ({"bits": 4, "method": "hqq"}, "method"),
        ({"method": "gptq"}, "llm-compressor needs transformers 5.17"),
        ({"bits": 8, "method": "w8a8"}, "an environment of its own"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Config.model_validate(settings)
