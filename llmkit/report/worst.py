"""The answers that fell the most, side by side. Knows samples with a score a variant; scores nothing itself."""

from collections.abc import Iterable, Sequence
from heapq import nlargest

from llmkit.report import html, table, values
from llmkit.report.html import Html, element, join, said
from llmkit.report.values import Part, finite, part

_CARDS = 20
_EACH = 3  # of one variant
_TURNS = 6  # of a prompt, the last ones
_LONG = 600  # characters of one text
_HEADING = 160  # of a question in one line


def worst(report: Part, samples: Sequence[Part]) -> Html:
    """Cards of the samples on which a variant's ROUGE-L lies farthest below the reference row's.

    `samples`: {"prompt", "reference", "answers": {NAME: text}, "scores": {NAME: 0–100}, "failures": {NAME: why}}; without
    "scores" nothing is shown.
    """
    reference = str(report.get("reference"))
    names = [name for name in values.rows(report) if name not in (reference, table.BASE)][:_CARDS]
    if not names:
        return Html()
    each = max(1, min(_EACH, _CARDS // len(names)))
    parts = []
    for name in names:
        falls = ((fall, -number) for number, one in enumerate(samples) if (fall := _fall(one, name, reference)) > 0)
        found = [samples[-number] for _, number in nlargest(each, falls)]
        cards = [_card(one, name, reference, unfolded=place == 0) for place, one in enumerate(found)]
        parts.append(join([element("h3", said(name, most=60)), *cards]) if cards else Html())
    if not any(parts):
        return Html()
    lead = join(
        ["Where each variant's ROUGE-L fell farthest below that of ", said(reference, most=60), ". Long texts are cut."]
    )
    return join([element("p", lead, class_="quiet"), *parts])


def _score(sample: Part, name: str) -> float | None:
    return finite(part(sample, "scores").get(name))


def _fall(sample: Part, name: str, reference: str) -> float:
    before, after = _score(sample, reference), _score(sample, name)
    return 0.0 if before is None or after is None else before - after


def _card(sample: Part, name: str, reference: str, *, unfolded: bool) -> Html:
    lower = element("span", f"{_fall(sample, name, reference):.1f} points lower", class_="n")
    head = join([said(html.line(_asked(sample), _HEADING)), " ", lower])
    sides = [
        ("expected", said(sample.get("reference", ""), block=True, most=_LONG)),
        *(
            (f"{html.line(one, 60)}: {table.spelled(_score(sample, one), 1)}", _answer(sample, one))
            for one in (reference, name)
        ),
    ]
    shown = [element("div", element("h4", title), text) for title, text in sides]
    return html.unfold(head, *_turns(sample), element("div", *shown, class_="sides"), open=unfolded, class_="card worst")


def _asked(sample: Part) -> object:
    """What the user said last."""
    turns = values.parts(sample, "prompt")
    return next((turn.get("content", "") for turn in reversed(turns) if turn.get("role") == "user"), "")


def _turns(sample: Part) -> Iterable[Html]:
    """The conversation before the answer, without the question that the heading holds already."""
    turns = values.parts(sample, "prompt")
    if turns and turns[-1].get("role") == "user" and len(str(_asked(sample))) <= _HEADING:
        turns = turns[:-1]
    left = len(turns) - _TURNS
    if left > 0:
        yield element("p", f"{left} earlier messages are in samples.jsonl", class_="quiet small")
    items = [
        element("li", element("div", said(turn.get("role", ""), most=40), class_="meta"), _said(turn.get("content", "")))
        for turn in turns[-_TURNS:]
    ]
    if items:
        yield element("ul", *items, class_="examples")


def _said(text: object) -> Html:
    return said(text, block=True, most=_LONG)


def _answer(sample: Part, name: str) -> Html:
    why = part(sample, "failures").get(name)
    if why:
        return element("p", "no answer: ", said(why, most=300), class_="bad")
    text = part(sample, "answers").get(name, "")
    return _said(text) if str(text).strip() else element("p", "(empty answer)", class_="quiet")
