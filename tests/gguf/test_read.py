"""A damaged GGUF file is an error in one line, whatever the damage."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError, LlmkitError
from llmkit.gguf.read import metadata, state_dict


@pytest.fixture(scope="module")
def whole(exported: Callable[..., Path]) -> bytes:
    return exported("mistral", "q8_0").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "file.gguf"


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_a_data_error(share: float, whole: bytes, scratch: Path) -> None:
    scratch.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError):
        state_dict(scratch)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_corrupted_header_never_ends_in_a_traceback(data: st.DataObject, whole: bytes, scratch: Path) -> None:
    damaged = bytearray(whole)
    for _ in range(3):
        damaged[data.draw(st.integers(0, 40_000))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    with contextlib.suppress(LlmkitError):
        metadata(scratch)
        state_dict(scratch)


def test_a_missing_file_and_another_format_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        metadata(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(DataError):
        state_dict(tmp_path / "text.gguf")
