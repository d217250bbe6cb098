"""Sensitive words against a naive search, and lists that are not lists."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data import sensitive as module
from llmkit.data.filters import Changed, Rejection
from llmkit.data.record import Record
from llmkit.data.sensitive import holds_any, sensitive
from llmkit.errors import DataError


def record(*texts: str, rejected: str | None = None) -> Record:
    roles = ("user", "assistant")
    return Record([{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)], "f:1", rejected)


def listed(folder: Path, *words: str, name: str = "words.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def masked(text: str, *words: str, folder: Path) -> str:
    verdict = sensitive([listed(folder, *words)], action="mask")(record(text))
    return (verdict.record if isinstance(verdict, Changed) else verdict).messages[0]["content"]


NARROW = str.maketrans("Ａａ０", "Aa0")


def naive(text: str, words: list[str]) -> list[tuple[int, int]]:
    """From the left, at each place the longest word that stands there with its edges free."""

    text, words = text.translate(NARROW), [word.translate(NARROW) for word in words]

    def same(one: str, two: str) -> bool:
        return [char.casefold() for char in one] == [char.casefold() for char in two]

    def letter(place: int) -> bool:
        return 0 <= place < len(text) and text[place].isalnum() and not "一" <= text[place] <= "鿿"

    def free(start: int, end: int) -> bool:
        return not (letter(start - 1) and letter(start)) and not (letter(end - 1) and letter(end))

    hits, place = [], 0
    while place < len(text):
        ends = [
            place + len(word)
            for word in words
            if same(text[place : place + len(word)], word) and free(place, place + len(word))
        ]
        if ends:
            hits.append((place, max(ends)))
        place = max(ends, default=place + 1)
    return hits


ALPHABET = "abA1 é色情*-ΣσςＡａ０0\n"
WORDS = st.lists(
    st.text(ALPHABET.replace("\n", ""), min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=8
)


@settings(max_examples=400, deadline=None)
@given(st.text(ALPHABET, max_size=30), WORDS)
@example("ab a", ["ab a", "ab", "a"])
@example("aab 色a情", ["aa", "ab", "a", "色a"])
def test_hits_are_those_of_a_naive_search(text: str, words: list[str]) -> None:
    assert module._finder(words)(text) == naive(text, words)


@settings(max_examples=50, deadline=None)
@given(st.text(ALPHABET, min_size=20, max_size=60), WORDS, st.integers(1, 9))
def test_searching_in_chunks_finds_the_same(text: str, words: list[str], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        hits = module._finder(words)(text)
    assert hits == module._finder(words)(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a class in glass", "a class in glass"),
        ("an ass, ASS! ａｓｓ ass", "an ***, ***! *** ***"),
        ("你ass他", "你***他"),
        ("ass1 _ass_ ass", "ass1 _***_ ***"),
        ("看色情片", "看**片"),
        ("法轮大法好", "****好"),
        ("bad words here, badwordsx", "********* here, badwordsx"),
        ("İass ass", "İass ***"),
        ("ΟΔΟΣ οδος", "**** ****"),
        ("1964年 64年 第64", "1964年 **年 第**"),
        ("class war wars", "********* wars"),
    ],
)
def test_words_have_edges_that_fit_their_script(text: str, expected: str, tmp_path: Path) -> None:
    words = ("Ass", "色情", "法轮", "法轮大法", "bad words", "οδοσ", "64", "class war")
    assert masked(text, *words, folder=tmp_path) == expected


def test_where_the_longest_fails_at_its_edge_a_shorter_one_counts(tmp_path: Path) -> None:
    assert masked("class wars", "class war", "class", folder=tmp_path) == "***** wars"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(ALPHABET + "\ud800", max_size=12), min_size=1, max_size=4),
    st.one_of(st.none(), st.text(ALPHABET, max_size=12)),
)
def test_the_three_actions_agree(tmp_path_factory: pytest.TempPathFactory, texts: list[str], rejected: str | None) -> None:
    path = listed(tmp_path_factory.mktemp("lists"), "a", "ab", "色情", "情*")
    dialogue = record(*texts, rejected=rejected)
    mask, count, drop = (sensitive([path], action=action)(dialogue) for action in ("mask", "count", "drop"))
    hits = [module._finder(["a", "ab", "色情", "情*"])(text) for text in [*texts, *([] if rejected is None else [rejected])]]
    total = sum(map(len, hits))
    if not total:
        assert mask is count is drop is dialogue
        return
    assert count == Changed(dialogue, {"sensitive": total})
    assert isinstance(drop, Rejection)
    assert drop.reason == "sensitive"
    assert isinstance(mask, Changed)
    assert mask.found == count.found
    for old, new, spans in zip(texts, mask.record.messages, hits, strict=False):
        inside = {place for span in spans for place in range(*span)}
        assert new["content"] == "".join("*" if place in inside else char for place, char in enumerate(old))
    assert dialogue == record(*texts, rejected=rejected)


def test_a_rejection_names_the_first_word_briefly(tmp_path: Path) -> None:
    path = listed(tmp_path, "色情", "long " * 10)
    assert sensitive([path], action="drop")(record("x", "看色情 和 色情")) == Rejection("sensitive", "word ‘色情’ and 1 more")
    assert sensitive([path], action="drop")(record("long " * 10)) == Rejection("sensitive", "word ‘long long long long…’")


def test_lists_add_up_and_comments_blank_lines_and_a_byte_order_mark_are_no_words(tmp_path: Path) -> None:
    first = listed(tmp_path, "\ufeff# a comment", "", "  甲乙 \r", name="a.txt")
    second = listed(tmp_path, "#丙丁", "戊己", name="b.txt")
    verdict = sensitive([first, second], action="mask")(record("甲乙丙丁戊己 # a comment"))
    assert isinstance(verdict, Changed)
    assert verdict.record.messages[0]["content"] == "**丙丁** # a comment"


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        (None, "cannot read", "words.txt"),
        (b"", "no word", "words.txt"),
        (b"# x\n\n", "no word", "words.txt"),
        ("ok\n敏感\n".encode("gb18030"), "not UTF-8", "words.txt:2"),
    ],
)
def test_a_list_that_is_none_is_a_data_error(content: bytes | None, what: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        sensitive([path], action="drop")
    assert caught.value.where.endswith(where)
    assert caught.value.next


def test_ten_thousand_words_are_ready_in_half_a_second_and_all_found(tmp_path: Path) -> None:
    rng = random.Random(3)
    han = [chr(code) for code in range(0x4E00, 0x5800)]
    words = list({"".join(rng.choices(han, k=rng.randint(2, 5))) for _ in range(10_500)})[:10_000]
    path = listed(tmp_path, *words)
    began = time.perf_counter()
    rule = sensitive([path], action="count")
    assert time.perf_counter() - began < 0.5
    assert len(words) == 10_000
    assert all(isinstance(rule(record(f"他说{word}了")), Changed) for word in words)


def test_a_text_holds_a_listed_word_where_the_rule_would_drop_it(tmp_path: Path) -> None:
    lists = [listed(tmp_path, "坏词", "class war"), listed(tmp_path, "ugly", name="more.txt")]
    holds, rule = holds_any(lists), sensitive(lists, action="drop")
    for text in ("这是坏词", "classwar", "a CLASS WAR", "ugly", "uglyx", "", "好词"):
        assert holds(text) is isinstance(rule(record(text)), Rejection)
    assert holds("这是坏词")
    assert not holds("uglyx")
