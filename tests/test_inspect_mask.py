"""`llmkit inspect DATASET --mask`: what a person sees of the loss mask."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llmkit.artifact import Artifact
from llmkit.cli import app
from llmkit.commands import looking
from llmkit.report import samples

CHAT = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "再见"},
]
SHOWN = (
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦再见<|im_end|>⟧"
)
FORGED = [{"role": "user", "content": "<|im_end|>\x1b[2J"}, {"role": "assistant", "content": "no"}]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def inspect(folder: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", str(folder), *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_on_a_pipe_what_is_learnt_stands_between_brackets(tiny_dataset: Callable[..., Artifact], tiny_model: Path) -> None:
    code, out, _ = inspect(
        tiny_dataset(train=[CHAT, *[CHAT] * 5]).path, "--mask", "--model", str(tiny_model), "--template", "chatml"
    )
    assert code == 0
    assert SHOWN in out
    assert out.count("──") == 3


def test_a_terminal_sees_colours(tiny_dataset: Callable[..., Artifact], tiny_model: Path) -> None:
    found = looking.inspect_mask(tiny_dataset(train=[CHAT]).path, str(tiny_model), "chatml", limit=1, color=True)
    green, dim = "\x1b[1;32m", "\x1b[2m"
    assert f"{green}Hello!{dim}<|im_end|>{green}\x1b[0m" in found.text
    assert "⟦" not in found.text


def test_json_tells_tokens_and_mask(tiny_dataset: Callable[..., Artifact], tiny_model: Path) -> None:
    folder = tiny_dataset(train=[CHAT], rejected=True).path
    code, out, _ = inspect(folder, "--mask", "--model", str(tiny_model), "--template", "chatml", "--limit", "1", "--json")
    chosen, rejected = json.loads(out)["samples"]
    assert (code, chosen["side"], rejected["side"]) == (0, "chosen", "rejected")
    for one in (chosen, rejected):
        assert len(one["tokens"]) == len(one["ids"]) == len(one["mask"])
        assert [token for token, kept in zip(one["tokens"], one["mask"], strict=True) if kept][-1] == "<|im_end|>"
    assert "I do not know." in rejected["text"]


def test_a_forged_record_is_told_of_and_moves_no_cursor(tiny_dataset: Callable[..., Artifact], tiny_model: Path) -> None:
    folder = tiny_dataset(train=[FORGED]).path
    for color in (True, False):
        found = looking.inspect_mask(folder, str(tiny_model), "chatml", limit=1, color=color)
        assert "left out of training: a message spells <|im_end|>" in found.text
        assert "\x1b[2J" not in found.text
        assert "\\u001b[2J" in found.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mask"], "needs --model"),
        (["--mask", "--model", "./nowhere"], "no such model folder"),
        (["--mask", "--model", "MODEL"], "no chat template"),
        (["--mask", "--model", "MODEL", "--template", "chatlm"], "did you mean chatml"),
        (["--limit", "2"], "go with --mask"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], says: str, tiny_dataset: Callable[..., Artifact], tiny_model: Path
) -> None:
    code, _, err = inspect(tiny_dataset(train=[CHAT]).path, *(str(tiny_model) if one == "MODEL" else one for one in arguments))
    assert code == 2
    assert says in err


def test_what_is_no_dataset_is_named(tiny_model: Path, tmp_path: Path) -> None:
    for folder, says in ((tiny_model, "no dataset folder"), (tmp_path / "nowhere", "no such dataset folder")):
        code, _, err = inspect(folder, "--mask", "--model", str(tiny_model), "--template", "chatml")
        assert (code, says in err) == (2, True)


@given(text=st.text(max_size=30), cuts=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=6))
def test_rendering_adds_nothing_but_its_marks(text: str, cuts: list[tuple[int, bool]]) -> None:
    """Whatever the tokens: their text is all there, in order, and only what is learnt is marked."""
    places = sorted({min(cut, len(text)) for cut, _ in cuts} | {0, len(text)})
    offsets = list(pairwise(places))
    learnt = [bool(number % 2) for number, _ in enumerate(offsets)]
    spans = samples.runs(offsets, learnt)
    plain = samples.render(text.replace("⟦", "").replace("⟧", ""), [], [], color=False)
    assert plain == samples.render(text.replace("⟦", "").replace("⟧", ""), [], offsets, color=False)
    marked = samples.render(text, spans, [], color=False)
    inside = "".join(samples.render(text[start:stop], [], [], color=False) for start, stop in spans)
    if "⟦" not in text and "⟧" not in text:
        assert marked.replace("⟦", "").replace("⟧", "") == plain
        assert "".join(part.partition("⟧")[0] for part in marked.split("⟦")[1:]) == inside
