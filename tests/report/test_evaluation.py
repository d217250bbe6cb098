"""The evaluation's page: what was measured is there, what is missing is left out, and no text of anyone becomes markup."""

import copy
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report import evaluation, html
from tests.report import evaluations
from tests.report.test_training import NASTY, Page, pictures

REPORT, SAMPLES = evaluations.report(), evaluations.samples()
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [None], {"a": 1}, 10**400]),
)


def text(report: dict[str, Any], samples: Any = ()) -> str:
    return Page(evaluation.page(report, samples)).text


def section(page: str, anchor: str) -> str:
    start = page.index(f'<section id="{anchor}"')
    return Page(page[start : page.index("</section>", start) + len("</section>")]).text


def replaced(value: Any, word: str) -> Any:
    """Every text and every key of `value` by `word`, numbered where keys would fall together; known keys stay."""
    if isinstance(value, dict):
        return {key: replaced(one, word) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, word) for one in value]
    return word if isinstance(value, str) else value


def renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): renamed(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def test_every_part_of_the_report_is_told() -> None:
    page = evaluation.page(REPORT, SAMPLES)
    told = {
        "gate": ("The gate failed", "q4_k_m ROUGE-L max drop", "fell by 10.0, at least 8.1", "Cannot tell", "300 MB"),
        "ship": ("Ship q4_k_m+lora (261 MB", "q4_k_m lost the fine-tune (retention 0.705", "The rule:"),
        "variants": ("17.8", "15.4–20.4", "2.83", "569 MB", "llama.cpp on cpu", "q4_k_m !"),
        "scores": ("ROUGE-L", "chrF", "Exact match", "Distinct-1", "0.74–0.93", "lost the fine-tune"),
        "trade-off": ("Quality against size", "Quality against speed", "Pareto front"),
        "distance": ("2,311 tokens", "0.3560 ± 0.0178", "0.0890", "3.204", "83.7 %", "9.212"),
        "breakdown": ("By language", "zh 55", "By source", "客服对话.jsonl 80"),
        "tasks": ("cmmlu acc", "0.428 ± 0.031"),
        "code": ("pass@1", "12.5 4.0–24.0", "syntax valid"),
        "review": ("merged is preferred to base 74 % of the time (95 % interval 64–83 %)", "2 raters", "agreement 0.61"),
        "worst": ("What is a computer made of? (7) 85.0 points lower", "no answer: the prompt is longer than the context"),
        "lineage": ("chats.jsonl source cccc5e0fcccc5e0f", "from source: chats.jsonl", "kept: 1508", "c" * 64),
        "again": ("llmkit eval --recipe chinese-chat.yaml", "tok:zh", "decoding greedy"),
    }
    for anchor, words in told.items():
        found = section(page.replace("</td>", " </td>").replace("<div", " <div").replace("</span>", " </span>"), anchor)
        for word in words:
            assert " ".join(word.split()) in found, (anchor, word, found)
    assert page.index('id="gate"') < page.index('id="variants"'), "the verdict comes first"
    assert "Worth a second look" in page


def test_the_page_asks_nothing_of_a_network_and_runs_nothing() -> None:
    page = evaluation.page(REPORT, SAMPLES)
    found = Page(page)
    assert "script" not in found.tags
    assert ("content", html.POLICY) in found.attributes
    targets = [value or "" for name, value in found.attributes if name in ("href", "src", "action", "srcset", "xlink:href")]
    assert all(target.startswith("#") or target == "data:," for target in targets)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", page)


@pytest.mark.parametrize("word", NASTY)
def test_a_hostile_text_stays_a_text(word: str) -> None:
    def build(word: str) -> Page:
        report = replaced(REPORT, word) | {"reference": "merged", "name": word}
        names = {name: f"{name}{word}" for name in ("q8_0", "cmmlu", "zh", "rougeL", "max_new_tokens")}
        samples = [replaced(sample, word) for sample in SAMPLES]
        return Page(evaluation.page(renamed(report, names), renamed(samples, names)))

    found = build(word)
    assert found.tags == build("x").tags
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert " ".join(html.printable(word).split()) in found.text
    # What GitHub would make markup of is marked as text.
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(", evaluation.summary(replaced(REPORT, "[a](b)<b>") | {"reference": "merged"}))


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_part_may_be_missing_or_of_another_kind(data: st.DataObject) -> None:
    report = copy.deepcopy(REPORT)
    for _ in range(data.draw(st.integers(1, 6))):
        place: Any = report
        while isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
            if data.draw(st.booleans()):
                place[key] = data.draw(ODD)
                break
            place = place[key]
    page = evaluation.page(report, SAMPLES[:3])
    Page(page)
    page.encode()
    evaluation.summary(report).encode()
    for picture in pictures(page):
        for shape in picture.iter():
            assert not [value for value in shape.attrib.values() if value in ("nan", "inf", "-inf")]


@given(st.lists(st.dictionaries(st.sampled_from([*SAMPLES[0], "failures"]), ODD), max_size=5))
@settings(deadline=None)
def test_any_sample_leaves_the_page_whole(samples: list[dict[str, Any]]) -> None:
    report = {"reference": "merged", "models": {"merged": {}, "q8_0": {}}}
    Page(evaluation.page(report, [{**SAMPLES[0], **sample} for sample in samples]))


def test_nothing_measured_is_a_page_too() -> None:
    for report in ({}, {"models": {}}, {"reference": None, "models": {"api": {"metrics": {}}}}):
        assert "Evaluation" in text(report)
        assert isinstance(evaluation.summary(report), str)


def test_a_page_is_bounded_whatever_goes_in() -> None:
    long = "长 <b>" * 200_000
    report = replaced(REPORT, long) | {"reference": "merged", "warnings": [long] * 1000}
    report["models"] = {f"v{n}": REPORT["models"]["q8_0"] for n in range(2000)} | {"merged": REPORT["models"]["merged"]}
    report["tasks"] = {f"t{n}": REPORT["tasks"]["cmmlu"] for n in range(2000)}
    report["settings"] = {f"s{n}": long for n in range(200)}
    samples = [
        replaced(sample, long) | {"scores": {"merged": 90.0, **{f"v{n}": 1.0 for n in range(2000)}}} for sample in SAMPLES
    ]
    samples = [sample | {"prompt": sample["prompt"] * 500} for sample in samples[:40]]
    started = time.perf_counter()
    page = evaluation.page(report, samples)
    assert len(page) < 3_000_000
    assert page.count(" points lower</span>") <= 20
    assert time.perf_counter() - started < 20


def test_the_worst_samples_are_those_that_fell_farthest_below_the_reference() -> None:
    samples = [
        {"id": str(n), "prompt": [{"role": "user", "content": f"<{n}>"}], "scores": {"merged": 90.0, "q8_0": 90.0 - n}}
        for n in (1, 9, 4, 7, 0)
    ]
    shown = section(evaluation.page(REPORT, samples), "worst")
    assert re.findall(r"<(\d)>", shown) == ["9", "7", "4"]
    assert "worst" not in re.findall(r'id="(\w+)"', evaluation.page(REPORT, [{**one, "scores": {}} for one in samples]))


def test_intervals_are_strokes_as_wide_as_they_are() -> None:
    page = evaluation.page(REPORT, [])
    picture = next(one for one in pictures(page) if one.attrib["aria-label"].startswith("ROUGE-L"))
    dots = [float(dot.attrib["cx"]) for dot in picture.iter("circle")]
    strokes = [line.attrib for line in picture.iter("line") if line.attrib.get("class") == "interval"]
    rows = list(REPORT["models"].values())
    assert len(dots) == len(strokes) == len(rows)
    (low, left), (high, right) = ((rows[n]["metrics"]["rougeL"], dots[n]) for n in (0, 2))
    for row, stroke in zip(rows, strokes, strict=True):
        for end, place in zip(row["intervals"]["rougeL"], ("x1", "x2"), strict=True):
            assert float(stroke[place]) == pytest.approx(left + (right - left) * (end - low) / (high - low), abs=0.3)
    assert "merged 17.8 (15.4 to 20.4)" in picture.attrib["aria-label"], "for who cannot see it"


def test_the_front_of_the_pictures_is_what_may_be_shipped_and_nothing_beats() -> None:
    size, speed = (one for one in pictures(evaluation.page(REPORT, [])) if one.attrib["aria-label"].startswith("Quality"))
    for picture, expected in ((size, {"q5_k_m", "q4_k_m+lora", "q8_0", "int8"}), (speed, {"merged", "q8_0", "int8"})):
        told = picture.attrib["aria-label"].split(": ", 2)[2].split("; ")
        assert {one.split()[0] for one in told if one.endswith("on the front")} == expected
        filled = [dot for dot in picture.iter("circle") if "front" in dot.attrib["class"]]
        assert len(filled) == len(expected)
        line = next(picture.iter("polyline")).attrib["points"].split()
        assert {f"{dot.attrib['cx']},{dot.attrib['cy']}" for dot in filled} <= {*line}


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 1e4), st.floats(0, 30)), min_size=2, max_size=24))
@settings(deadline=None, max_examples=40)
def test_any_variants_are_drawn_inside_their_pictures(rows: list[tuple[float, float, float]]) -> None:
    models = {
        f"variant-{n}": {
            "metrics": {"rougeL": score},
            "intervals": {"rougeL": [score - spread, score + spread]},
            "size_bytes": size,
        }
        for n, (score, size, spread) in enumerate(rows)
    }
    for picture in pictures(evaluation.page({"reference": "variant-0", "models": models}, [])):
        wide, high = map(float, picture.attrib["viewBox"].split()[2:])
        assert wide == 460
        for shape in picture.iter():
            across = [float(shape.attrib[key]) for key in ("x", "x1", "x2", "cx") if key in shape.attrib]
            down = [float(shape.attrib[key]) for key in ("y", "y1", "y2", "cy") if key in shape.attrib]
            assert all(0 <= x <= wide for x in across)
            assert all(-10 <= y <= high for y in down)


def test_the_summary_is_short_markdown_with_the_verdict_first() -> None:
    told = evaluation.summary(REPORT)
    assert told.splitlines()[0].startswith("**Gate: fail")
    assert "Ship q4\\_k\\_m" in told
    assert "| merged | 2.5±0.7 |" in told
    assert len(told) < 5000


def test_a_report_that_went_through_json_is_the_same_page() -> None:
    again = json.loads(json.dumps([REPORT, SAMPLES]))
    assert evaluation.page(*again) == evaluation.page(REPORT, SAMPLES)
