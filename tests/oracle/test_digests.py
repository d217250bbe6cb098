"""The digests that `tests/gguf/test_encode.py` compares with are still those of llama.cpp's files."""

import pytest

from llmkit.gguf.types import TYPES
from tests.oracle.record import measured, recorded
from tests.oracle.sources import SOURCES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_recorded_is_what_llama_quantize_writes(name: str) -> None:
    assert set(recorded()[name]) == set(TYPES)
    assert measured(name) == recorded()[name], "record them anew: python -m tests.oracle.record"
