"""Stop texts end an answer and are never seen, not even in part."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.serve.stops import Stops

LETTERS = st.text("ab你\n", max_size=24)
STOPS = st.lists(st.text("ab你\n", max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What the whole answer must come to: everything before the first stop text."""
    places = [text.find(stop) for stop in stops if stop and stop in text]
    return (text[: min(places)], True) if places else (text, False)


@settings(deadline=None)  # a busy machine is no failure
@given(text=LETTERS, stops=STOPS, sizes=st.lists(st.integers(1, 5), min_size=24, max_size=24))
def test_however_an_answer_is_cut_into_pieces_it_ends_before_its_first_stop_text(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    reader, shown, rest = Stops(stops), "", text
    for size in sizes:
        if not rest or reader.found:
            break
        shown += reader.push(rest[:size])
        rest = rest[size:]
    shown += reader.flush()
    # A longer stop text may begin before a shorter one that is whole already: whichever is whole first ends the answer.
    expected, stopped = cut(text[: len(text) - len(rest)], stops)
    assert (shown, reader.found) == (expected, stopped)


def test_what_cannot_be_a_stop_text_any_more_is_shown_at_once() -> None:
    reader = Stops(["###"])
    assert [reader.push(piece) for piece in ("a#", "#b", "c", "##", "#d")] == ["a", "##b", "c", "", ""]
    assert reader.found
