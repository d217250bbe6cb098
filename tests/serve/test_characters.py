"""Texts come in whole characters, and together they are what the tokenizer makes of the whole."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.engine import loading
from llmkit.serve.characters import Characters
from tests.gguf.families import FAMILIES


@pytest.fixture(scope="module", params=["tiny", "mistral", "gemma3", "smollm2"])
def tokenizer(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Byte-level BPE, and SentencePiece's kind with bytes to fall back on."""
    if request.param == "tiny":
        return loading.load_tokenizer(tiny_model)
    return loading.load_tokenizer(FAMILIES[request.param].build(tmp_path_factory.mktemp(request.param) / "model"))


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    st.lists(st.sampled_from(["你好", "😀", "👨‍👩‍👧", "don't", " ", "  ", "\n", "é", "\ufffd", "<|im_end|>", "</s>"])).map(
        "".join
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_the_pieces_of_a_text_are_whole_characters_and_together_the_whole(text: str, tokenizer: object) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    reader = Characters(tokenizer)
    pieces = [reader.push(token) for token in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    assert "".join(pieces) + reader.flush() == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tokens_at_all_come_to_what_the_tokenizer_makes_of_them(data: st.DataObject, tokenizer: object) -> None:
    size = len(tokenizer)  # type: ignore[arg-type]
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    reader = Characters(tokenizer)
    said = "".join(reader.push(token) for token in ids) + reader.flush()
    whole = tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    if "\ufffd" in whole:  # broken bytes; a tokenizer may break the whole ones before them as well
        rest = iter(said)
        assert all(sign in rest for sign in whole if sign not in "\ufffd ")  # in order, and perhaps more
    else:
        assert said == whole


def test_an_emoji_of_several_tokens_comes_at_once(tiny_model: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    reader = Characters(tokenizer)
    assert [piece for token in ids if (piece := reader.push(token))] == ["a", "😀", "b"]
