"""No listed word is ever shown, whatever the pieces; a text without one passes as it is."""

import itertools
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmkit.data import sensitive
from llmkit.serve.http.screen import Screen, Words

# Few characters, so that words meet, overlap and stand inside each other; letters have edges, Han and signs have none.
ALPHABET = "abA 坏蛋-ς"
WORD = st.text(ALPHABET, min_size=1, max_size=4).filter(lambda word: word.strip() == word)
TEXT = st.text(ALPHABET, max_size=30)


def words_of(tmp: Path, words: list[str]) -> Words:
    path = tmp / "words.txt"
    path.write_text("\n".join(words), "utf-8")
    return Words([path])


def screened(words: Words, pieces: list[str], *, before: str = "") -> tuple[str, bool]:
    screen = Screen(words, before=before)
    shown = [screen.push(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
    return "".join(shown), screen.caught


def cut(text: str, places: list[int]) -> list[str]:
    """`text` in pieces, some of them empty."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@settings(deadline=None)  # a busy machine is no failure
@given(listed=st.lists(WORD, min_size=1, max_size=4), text=TEXT, places=st.lists(st.integers(0, 100), max_size=12))
def test_what_is_shown_ends_before_the_first_listed_word_however_the_text_is_cut(
    folder: Path, listed: list[str], text: str, places: list[int]
) -> None:
    words = words_of(folder, listed)
    whole_hits = words.find(text)
    shown, caught = screened(words, cut(text, places))
    assert shown == (text[: whole_hits[0][0]] if whole_hits else text)
    assert caught == bool(whole_hits)
    assert not words.find(shown)


@settings(deadline=None)  # a busy machine is no failure
@given(
    listed=st.lists(WORD, min_size=1, max_size=4),
    prompt=TEXT,
    text=TEXT,
    places=st.lists(st.integers(0, 100), max_size=12),
)
def test_a_word_that_begins_in_the_prompt_is_not_ended_by_the_answer(
    folder: Path, listed: list[str], prompt: str, text: str, places: list[int]
) -> None:
    words = words_of(folder, listed)
    assume(not words.find(prompt))
    ended = [(start, end) for start, end in words.find(prompt + text) if end > len(prompt)]
    shown, caught = screened(words, cut(text, places), before=prompt)
    assert shown == (text[: max(0, ended[0][0] - len(prompt))] if ended else text)
    assert caught == bool(ended)


@settings(deadline=None)  # a busy machine is no failure
@given(text=TEXT, places=st.lists(st.integers(0, 100), max_size=12))
def test_without_a_list_every_piece_passes_at_once(text: str, places: list[int]) -> None:
    screen = Screen(Words([]))
    for piece in cut(text, places):
        assert screen.push(piece) == piece


@settings(deadline=None)  # a busy machine is no failure
@given(text=st.text("abcdefgh ", min_size=20, max_size=60))
def test_no_more_is_held_back_than_the_longest_word(folder: Path, text: str) -> None:
    screen = Screen(words_of(folder, ["坏蛋"]))
    shown = "".join(screen.push(character) for character in text)
    assert shown == text[: len(text) - 2]


def test_a_search_from_a_place_knows_what_stands_before_it(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("ass", "utf-8")
    find, longest = sensitive.searcher([tmp_path / "words.txt"])
    assert longest == 3
    assert find("class", 2) == []
    assert find("cl ass", 3) == [(3, 6)]
