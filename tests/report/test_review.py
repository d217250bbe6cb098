"""The review page: blind, whole whatever the texts hold, and in a real browser one that a keyboard can fill in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.metrics import ratings
from llmkit.metrics.ratings import Review
from llmkit.report import evaluation, html, review
from tests.report import evaluations
from tests.report.cdp import Tab, opened
from tests.report.test_browser import BROWSERS, browser
from tests.report.test_training import NASTY, Page

__all__ = ["BROWSERS", "browser"]

QUESTIONS = ("你叫什么名字？", "What is <b>the</b> sea?", "退货要几天？", "Why?", "谁写了《红楼梦》？", "How far is the moon?")


def arranged() -> Review:
    """The first model answers well, the second says nothing of worth; one question both answer alike."""
    answers = {f"q{n}": (f"good {n} 好", f"bad {n} 坏") for n in range(len(QUESTIONS) - 1)}
    return ratings.arrange(answers | {"same": ("so", "so")}, seed=1)


def pairs_of(found: Review) -> list[dict[str, Any]]:
    asked = [{"role": "system", "content": "用一句话回答。"}]
    return [
        {"item": item, "prompt": [*asked, {"role": "user", "content": QUESTIONS[int(item[1])]}], "left": left, "right": right}
        for item, (left, right) in found.shown.items()
    ]


def data_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.split('id="pairs">')[1].partition("</script>")[0])
    return found


def test_the_page_holds_what_is_shown_and_nothing_of_who_said_it() -> None:
    found = arranged()
    data = data_of(review.page(pairs_of(found), title="Which?", review=found.id))
    assert data.keys() == {"review", "pairs"}
    for pair in data["pairs"]:
        assert pair.keys() == {"item", "prompt", "left", "right"}
        assert (pair["left"]["text"], pair["right"]["text"]) == found.shown[pair["item"]]
    assert [pair["item"] for pair in data["pairs"]] == list(found.shown)


def test_the_page_may_run_its_own_script_and_nothing_else() -> None:
    page = review.page([], title="Which?", review="0")
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert re.fullmatch(re.escape(html.POLICY) + r"; script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert not re.search(r"url\(|@import|https?:|//[a-z]|innerHTML|\beval\b", page)


@given(st.text(max_size=40) | st.sampled_from(NASTY), st.text(max_size=40) | st.sampled_from(["</script>", "<!--<script>"]))
@settings(deadline=None, max_examples=50)
def test_no_text_can_leave_its_place(prompt: str, answer: str) -> None:
    pair = {"item": prompt, "prompt": [{"role": prompt, "content": prompt}], "left": answer, "right": prompt}
    page = review.page([pair], title=answer, review="0")
    plain = review.page([{**pair, "item": "", "left": "", "right": "", "prompt": []}], title="", review="0")
    tags = re.compile(r"</?[a-zA-Z]\w*|<!--")
    assert tags.findall(page) == tags.findall(plain)
    assert data_of(page)["pairs"][0]["item"] == prompt, "an item comes back as it was"
    page.encode()


def test_long_texts_are_cut() -> None:
    turns = [{"role": "user", "content": "长" * 10**6}] * 200
    pair = {"item": "1", "prompt": turns, "left": "a" * 10**6, "right": "b"}
    assert len(review.page([pair], title="t" * 10**6, review="0")) < 60 * 6 * review.LONGEST


def test_the_page_is_well_formed() -> None:
    page = review.page(pairs_of(arranged()), title="哪个更好？", review="0")
    Page(re.sub(r"<(script|style).*?</\1>|<input[^>]*></input>", "", page, flags=re.DOTALL))


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "review.html"
    path.write_text(review.page(pairs_of(arranged()), title="哪个更好？", review=arranged().id), encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: str, page: Path) -> Iterator[Tab]:
    with opened(browser, page) as one:
        yield one


def shown(tab: Tab, what: str) -> Any:
    return tab.run(f"document.querySelector({json.dumps(what)}).innerText")


def exported(tab: Tab, page: Path) -> Path:
    before = len(tab.events)
    tab.run("document.getElementById('export').click()")
    tab.wait_for("Browser.downloadProgress", after=before, state="completed")
    return page.with_name("ratings.json")


def prefer(tab: Tab, word: str) -> None:
    """Choose the side whose answer holds `word`, until the end."""
    while not tab.run("document.getElementById('question').hidden"):
        tab.press("ArrowLeft" if word in shown(tab, "#left .said") else "2")


def test_ratings_by_keyboard_change_the_win_rate(tab: Tab, page: Path) -> None:
    found = arranged()
    rates = []
    for word in ("good", "bad"):
        prefer(tab, word)
        one = ratings.read(exported(tab, page), found)
        assert one.choices.keys() == found.shown.keys()
        rates.append(ratings.win_rates([one], found)["win_rate"])
        page.with_name("ratings.json").unlink()
        tab.run("window.confirm = () => true, document.getElementById('restart').click()")
    assert rates == pytest.approx([5.5 / 6, 0.5 / 6]), "equal answers are a tie"
    assert tab.requests() == []
    assert tab.said("Runtime.exceptionThrown") == tab.said("Log.entryAdded") == []


def test_every_key_does_what_it_says(tab: Tab, page: Path) -> None:
    items = list(arranged().shown)
    tab.press("1", "ArrowRight", "Backspace", "Backspace", "2", " ", "b", "n")
    assert tab.run("document.activeElement.tagName") == "TEXTAREA"
    tab.press("1", "b", "Backspace", " ", "?", "Escape", "0")
    tab.run("document.getElementById('rater').focus()")
    tab.press(*"Ann 2", "Enter")
    saved = json.loads(exported(tab, page).read_text("utf-8"))
    assert saved["rater"] == "Ann 2"
    choices = [(one["item"], one["choice"]) for one in saved["ratings"]]
    assert choices == list(zip(items, ("right", "right", "tie", "bad", "tie"), strict=False))[: len(choices)]
    assert len(choices) == 5
    assert [one["note"] for one in saved["ratings"] if "note" in one] == ["1 ?"], "in a field, keys are letters"
    assert all(one["seconds"] >= 0 for one in saved["ratings"])


def test_a_closed_page_goes_on_where_it_was(tab: Tab, page: Path) -> None:
    tab.press("1", "b")
    tab.go(page)
    assert "3" in shown(tab, "#count")
    tab.press("Backspace")
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map((one) => one.dataset.choice)"
    assert tab.run(pressed) == ["bad"]


@pytest.mark.parametrize("kept", ["{", "7", '{"ratings": [7, {"item": "q1", "choice": "up"}], "language": "toString"}'])
def test_what_the_browser_kept_may_be_broken(kept: str, tab: Tab, page: Path) -> None:
    name = f"llmkit-review:{arranged().id}"
    tab.send("Page.addScriptToEvaluateOnNewDocument", source=f"localStorage.setItem({name!r}, {kept!r})")
    tab.go(page)
    assert tab.run(f"localStorage.getItem({name!r})") == kept
    assert "0 rated" in shown(tab, "#count")
    tab.press("1")
    assert "1 rated" in shown(tab, "#count")
    assert tab.said("Runtime.exceptionThrown") == []


def test_the_page_speaks_both_languages(tab: Tab) -> None:
    said = [shown(tab, "footer")]
    tab.run("document.getElementById('language').click()")
    said.append(shown(tab, "footer"))
    assert "Left is better" in said[0]
    assert "左边更好" in said[1]
    assert tab.run("document.documentElement.lang") == "zh"
    assert not tab.run("[...document.querySelectorAll('[data-say]')].some((one) => !one.textContent)")


def test_markup_in_an_answer_is_shown_as_text(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "hostile.html"
    word = "<img src=http://pictures.example/x.png onerror=alert(1)>"
    pair = {
        "item": word,
        "prompt": [{"role": word, "content": word}],
        "left": word,
        "right": "</script><script>alert(1)</script>",
    }
    page.write_text(review.page([pair], title=word, review="0"), encoding="utf-8")
    with opened(browser, page) as tab:
        assert shown(tab, "#left .said") == word
        assert tab.run("document.images.length") == 0
        assert tab.requests() == []
        tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
        assert tab.run("window.ran === undefined"), "the policy lets no other script run"


def test_the_report_opens_without_a_request(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(evaluation.page(evaluations.report(), evaluations.samples()), encoding="utf-8")
    with opened(browser, page) as tab:
        assert tab.requests() == []
        assert tab.said("Log.entryAdded") == []
        assert tab.run("document.querySelectorAll('svg').length") == 9
        for width in (1200, 400):
            tab.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            assert tab.run("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"


def test_the_look_out_sees_a_request_where_there_is_one(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "bare.html"
    page.write_text('<!doctype html><img src="http://pictures.example/x.png">', encoding="utf-8")
    with opened(browser, page, "--host-resolver-rules=MAP * ~NOTFOUND") as tab:
        assert tab.requests() == ["http://pictures.example/x.png"]
