"""The training report: what it draws lies inside the picture, what was kept is marked, and no answer becomes markup."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report import html, training
from llmkit.steps import finetune

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></title></style><script",
    "]]>&#60;",
    "\ud800\x1b\u202e",
]
FACTS: dict[str, Any] = {
    "objective": "orpo",
    "objective_details": "orpo: NLL of the chosen answer - beta * log sigmoid(log odds ratio)",
    "method": "lora",
    "template": "chatml",
    "eos_token": "<|im_end|>",
    "precision": "bf16",
    "records": 1206,
    "records_overlong": 31,
    "records_truncated": 0,
    "records_split": 0,
    "records_forged": 2,
    "batch_size": 8,
    "trainable_parameters": 3796992,
    "steps": 40,
    "best_step": 30,
    "micro_batch": 4,
    "gradient_checkpointing": True,
    "processes": 2,
    "tokens": 270123,
    "seconds": 812.3,
    "tokens_per_second": 332.5,
    "train_loss": 0.4123,
    "valid_loss_before": 3.2104,
    "valid_loss_after": 1.0406,
}
NUMBERS = st.one_of(
    st.floats(), st.floats(0, 10), st.integers(), st.sampled_from([None, "7", True, [], 10**400, -1e300, 5e-324, 1e-9, 0])
)
KEYS = ("loss", "learning_rate", "grad_norm", "nll", "rewards_margin", "rewards_accuracy", "kl", "valid_loss")
ENTRIES = st.fixed_dictionaries({}, optional={"step": st.one_of(st.integers(0, 200), NUMBERS), **dict.fromkeys(KEYS, NUMBERS)})


class Page(HTMLParser):
    """What a page holds; fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def run(steps: int, *, every: int = 10) -> list[dict[str, float]]:
    """The log of a run that learns, whose validation loss is lowest at three quarters."""
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        noise = math.sin(step * 7.3) / 5
        history.append(
            {"step": step, "loss": 3 * math.exp(-4 * step / steps) + 0.5 + noise, "learning_rate": 2e-4, "tokens": 9}
        )
        history[-1] |= {"grad_norm": 1 + noise, "rewards_margin": step / steps, "rewards_accuracy": 0.5 + noise}
        if step % every == 0:
            history.append({"step": step, "valid_loss": 1 + (step / steps - 0.75) ** 2})
    return history


def pictures(page: str) -> list[ElementTree.Element]:
    """Each picture of the page, read as XML."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def places(shape: ElementTree.Element) -> list[tuple[float, float]]:
    """The points that a polyline, a path of vertical strokes or a circle goes through."""
    if shape.tag == "circle":
        return [(float(shape.attrib["cx"]), float(shape.attrib["cy"]))]
    if shape.tag == "path":
        strokes = re.findall(r"M(\S+) (\S+?)V([^M]+)", shape.attrib["d"])
        return [(float(x), float(y)) for x, *ends in strokes for y in ends]
    if shape.tag == "line":
        return [(float(shape.attrib[f"x{end}"]), float(shape.attrib[f"y{end}"])) for end in "12"]
    return [tuple(map(float, pair.split(","))) for pair in shape.attrib["points"].split()]  # type: ignore[misc]


def curve(page: str, key: str) -> list[tuple[float, float]]:
    return next(
        places(shape) for picture in pictures(page) for shape in picture.iter("polyline") if shape.attrib["class"] == key
    )


def assert_in_frame(picture: ElementTree.Element) -> None:
    frame = next(picture.iter("rect")).attrib
    left, top = float(frame["x"]), float(frame["y"])
    right, bottom = left + float(frame["width"]), top + float(frame["height"])
    assert picture.attrib["viewBox"] == "0 0 460 250"
    assert 0 <= left < right <= 460
    assert 0 <= top < bottom <= 250
    curves = [shape for shape in picture.iter() if shape.tag in ("polyline", "path", "circle")]
    assert any(map(places, curves))
    for shape in curves:
        assert all(left <= x <= right and top <= y <= bottom for x, y in places(shape)), shape.attrib
    for shape in picture.iter("line"):
        assert all(left <= x <= right and top <= y <= bottom + 4 for x, y in places(shape)), shape.attrib


@given(st.lists(ENTRIES, max_size=40), NUMBERS)
@settings(max_examples=150, deadline=None)
def test_any_log_is_drawn_inside_its_frame(history: list[dict[str, Any]], best: Any) -> None:
    page = training.page(history, [], {**FACTS, "best_step": best})
    Page(page)
    for picture in pictures(page):
        assert_in_frame(picture)
        texts = [text.text or "" for text in picture.iter("text")]
        assert not [text for text in texts if "nan" in text or "inf" in text]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
@settings(deadline=None)
def test_a_higher_value_stands_higher_and_a_later_step_further_right(values: list[float]) -> None:
    history = [{"step": number, "valid_loss": value} for number, value in enumerate(values)]
    drawn = curve(training.page(history, [], {}), "valid_loss")
    assert len(drawn) == len(values)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    ranked = sorted(range(len(values)), key=values.__getitem__)
    heights = [drawn[place][1] for place in ranked]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize(("values", "powers"), [([3.0, 2.0, 1.0, 0.5], False), ([4.0, 0.02, 0.01, 0.001], True)])
def test_the_axis_names_the_values_that_stand_there(values: list[float], powers: bool) -> None:
    """The height of each value, worked out from two ticks, is the one it was drawn at."""
    page = training.page([{"step": n, "valid_loss": value} for n, value in enumerate(values)], [], {})
    texts = [text for text in pictures(page)[0].iter("text") if text.attrib["x"] == "52" and text.text != "step"]
    (low, bottom), (high, top) = ((float(texts[end].text or ""), float(texts[end].attrib["y"]) - 4) for end in (0, -1))
    scale = math.log10 if powers else float
    for value, (_, y) in zip(values, curve(page, "valid_loss"), strict=True):
        assert y == pytest.approx(bottom + (top - bottom) * (scale(value) - scale(low)) / (scale(high) - scale(low)), abs=0.2)


def test_every_curve_of_the_log_has_its_picture_with_ticks_and_legend() -> None:
    history = [entry | ({"nll": 1.0, "kl": 0.1} if "loss" in entry else {}) for entry in run(40)]
    page = training.page(history, [], FACTS)
    drawn = {shape.attrib["class"] for picture in pictures(page) for shape in picture.iter("polyline")}
    assert drawn == set(KEYS)
    assert len(pictures(page)) == len(KEYS) - 1, "both losses share one"
    for picture in pictures(page):
        texts = [text.text for text in picture.iter("text") if text.text != "step"]
        assert 5 <= len(texts) <= 18
        assert len(set(texts)) >= 5
    assert "validation" in Page(page).text
    assert len(pictures(training.page([{"step": 1, "loss": 2.0}], [], {}))) == 1, "what was not logged has none"


def test_the_kept_step_is_marked_at_its_validation_loss() -> None:
    history = run(40)
    page = training.page(history, [], FACTS)
    marks = [mark for picture in pictures(page) for mark in picture.iter("g") if mark.attrib["class"] == "best"]
    assert len(marks) == 1
    circle, text = next(marks[0].iter("circle")), next(marks[0].iter("text"))
    assert text.text == "kept: step 30"
    measured = dict(zip((10, 20, 30, 40), curve(page, "valid_loss"), strict=True))
    assert places(circle) == [measured[30]]
    for nothing in (None, 10**9, math.nan):
        assert 'class="best"' not in training.page(history, [], {**FACTS, "best_step": nothing})


def test_one_step_is_a_dot() -> None:
    page = training.page([{"step": 1, "loss": 2.5, "learning_rate": 0.0, "grad_norm": 1.0}], [], {**FACTS, "best_step": None})
    for picture in pictures(page):
        assert_in_frame(picture)
        assert len(places(next(picture.iter("path")))) == 2, "a stroke of no length"
    assert "training 2.5 at step 1" in Page(page).text


def test_a_long_run_stays_small_and_loses_no_peak() -> None:
    history: list[dict[str, Any]] = [{"step": n, "loss": 1 + n % 2 / 10, "learning_rate": 1e-4} for n in range(100_000)]
    history[54_321]["loss"] = 20.0
    history[54_322]["learning_rate"] = 5e-4
    page = training.page(history, [], FACTS)
    assert len(page) < 120_000
    loss, rate = pictures(page)
    for picture in (loss, rate):
        assert_in_frame(picture)
        assert all(len(places(shape)) <= 1000 for shape in picture.iter("polyline"))
    middle = 58 + (446 - 58) * 0.54321
    peak = min(places(next(loss.iter("path"))), key=lambda place: place[1])
    assert peak == pytest.approx((middle, 12), abs=1), "20 is the highest value of its axis"
    assert min(y for _, y in places(next(rate.iter("polyline")))) == 12
    smooth = [y for _, y in places(next(loss.iter("polyline")))]
    assert max(smooth) - min(smooth) < 1, "a mean over thousands of steps hardly sees one"


def test_the_smoothed_line_is_the_mean_of_the_steps_around() -> None:
    values = [0.0, 1.0, 1.0] * 66
    page = training.page([{"step": n, "loss": value} for n, value in enumerate(values)], [], {})
    around = [values[max(0, n - 2) : n + 3] for n in range(len(values))]
    heights = [222 - (222 - 12) * sum(some) / len(some) for some in around]  # the axis goes from 0 to 1
    assert [y for _, y in curve(page, "loss")] == pytest.approx(heights, abs=0.06)
    assert "training, smoothed" in Page(page).text
    assert "single steps" in Page(page).text
    assert "smoothed" not in Page(training.page(run(20), [], {})).text, "few steps are drawn as they are"


def test_the_facts_are_told_in_words() -> None:
    text = Page(training.page(run(40), [], FACTS)).text
    for told in (
        *("Odds ratio preference optimization: a LoRA adapter", "beta * log sigmoid(log odds ratio)", "1,206", "270,123"),
        *("31 too long; 2 spell special tokens", "3.210 → 1.041", "332 tokens a second", "13 min 32 s", "3,796,992"),
        *("4 records; activations made again", "what learns stays fp32", "<|im_end|>"),
    ):
        assert told in text
    assert "Worth a second look" not in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"valid_loss_after": 3.5}, "the loss on held-out dialogues rose from 3.210 to 3.500"),
        ({"valid_loss_after": None}, "no loss on held-out dialogues"),
        ({"records_overlong": 1206}, "50.0 % of the records were left out as too long"),
    ],
)
def test_what_went_wrong_is_said_first(change: dict[str, Any], told: str) -> None:
    assert told in Page(training.page(run(40), [], FACTS | change)).text


def test_values_that_are_no_numbers_are_counted() -> None:
    history: list[dict[str, Any]] = [*run(4), {"step": 5, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 1e-5}]
    assert "2 values of the log are no finite numbers" in Page(training.page(history, [], FACTS)).text


@given(st.dictionaries(st.sampled_from(list(FACTS)), st.one_of(NUMBERS, st.sampled_from(NASTY)), max_size=8))
@settings(deadline=None)
def test_any_fact_may_be_missing_or_odd(change: dict[str, Any]) -> None:
    for facts in (change, FACTS | change):
        page = training.page(run(3), [], facts)
        Page(page)
        assert "<script" not in page.lower()
        page.encode("utf-8")


def test_answers_stand_under_their_question_by_step() -> None:
    answers = {0: "不知道", 10: "巴", 30: "巴黎。", 40: "巴黎!"}
    samples = [
        {"step": step, "question": f"{q}首都是哪里？", "answer": answer + q} for step, answer in answers.items() for q in "法德"
    ]
    text = Page(training.page(run(40), samples, FACTS)).text
    first, second = text.index("法首都是哪里？"), text.index("德首都是哪里？")
    assert text.count("首都是哪里？") == 2
    found = [text.index(answer + "法") for answer in answers.values()]
    assert found == sorted(found)
    assert all(first < place < second for place in found)
    assert "step 30these weights were kept" in text
    assert "before training" in text


def test_of_many_answers_the_first_and_the_last_are_shown() -> None:
    samples = [{"step": n, "question": f"q{q}", "answer": f"[{n}]"} for n in range(300) for q in range(40)]
    page = training.page([], samples, FACTS)
    text = Page(page).text
    assert text.count("[0]") == text.count("[299]") == 24
    assert "and 16 more questions, in samples.jsonl" in text
    assert "276 answers between them are in samples.jsonl" in text
    assert len(page) < 150_000


@pytest.mark.parametrize("text", NASTY)
def test_a_hostile_answer_stays_a_text(text: str) -> None:
    def build(word: str) -> Page:
        facts = {key: word if isinstance(value, str) else value for key, value in FACTS.items()}
        return Page(training.page(run(4), [{"step": 1, "question": word, "answer": word}, {"answer": word}, {}], facts))

    found = build(text)
    assert found.tags == build("x").tags
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert " ".join(html.printable(text).split()) in found.text


@given(st.text(max_size=60), st.one_of(st.text(max_size=60), st.none(), st.integers()))
@settings(deadline=None)
def test_any_answer_leaves_the_page_whole(question: str, answer: Any) -> None:
    page = training.page(run(2), [{"step": 0, "question": question, "answer": answer}], FACTS)
    assert "<script" not in page.lower()
    Page(page)
    page.encode("utf-8")


def test_the_page_asks_nothing_of_a_network() -> None:
    page = training.page(run(200), [{"step": 0, "question": "q", "answer": "a"}], FACTS)
    found = Page(page)
    assert "script" not in found.tags
    assert ("content", html.POLICY) in found.attributes
    targets = [value or "" for name, value in found.attributes if name in ("href", "src", "action", "srcset", "xlink:href")]
    assert all(target.startswith("#") or target == "data:," for target in targets)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", page)


def test_a_run_of_nothing_is_a_page_too() -> None:
    assert "A training run" in Page(training.page([], [], {})).text


def test_the_step_draws_what_the_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run(20)), "utf-8")
    finetune._report(tmp_path, FACTS)
    bare = (tmp_path / "report.html").read_text("utf-8")
    assert "What it answered" not in bare
    assert len(pictures(bare)) == 5
    line = {"step": 0, "question": "两行？", "answer": "一\u2028二\x85三"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", "utf-8")
    finetune._report(tmp_path, FACTS)
    assert "一\u2028二" in (tmp_path / "report.html").read_text("utf-8")
