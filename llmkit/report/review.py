"""A page on which two answers are compared blind, by keyboard. Knows pairs of texts and which stands left; no model's name.

One file that asks nothing of a network: the ratings stay in the browser until the rater exports them as ratings.json, which
`metrics.ratings.read` takes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.report import html
from llmkit.report.html import Html, element

LONGEST = 20_000  # characters of one text that are shown
_TURNS = 40  # of one prompt, the last ones
_KEYS = (("left", "←", "1"), ("tie", "␣", "0"), ("bad", "B", ""), ("right", "→", "2"))
_ACTIONS = (("back", "⌫"), ("note", "N"), ("export", ""), ("restart", ""))


def page(pairs: Sequence[Mapping[str, Any]], *, title: str, review: str) -> str:
    """The page, with the pairs in the order given.

    `pairs`: {"item", "prompt": [{"role", "content"}…], "left": text, "right": text}, sides shuffled by the caller
    (`metrics.ratings.arrange`); `review`: the arrangement's id, which goes into the export; `title`: shown, so it must name
    no model. An item is exported as it came; the other texts are cut to `LONGEST` characters.
    """
    shown = [
        {
            "item": pair["item"],
            "prompt": [{"role": html.line(turn["role"], 40), **_text(turn["content"])} for turn in pair["prompt"][-_TURNS:]],
            "left": _text(pair["left"]),
            "right": _text(pair["right"]),
        }
        for pair in pairs
    ]
    return html.page(
        title,
        element("noscript", element("p", "This page needs JavaScript; its script is in this file and loads nothing.")),
        _head(title),
        _question(),
        _done(),
        _foot(),
        _data({"review": review, "pairs": shown}),
        script=html.beside("review.js"),
        style=html.beside("review.css"),
    )


def _text(text: object) -> dict[str, str]:
    """A text as it is shown, with the language that picks its glyphs."""
    shown = html.excerpt(text, LONGEST)
    return {"text": shown, "lang": html.language_of(shown) or ""}


def _head(title: str) -> Html:
    """Texts of the page itself are named by `data-say`; the script says them in the rater's language."""
    name = element("label", element("span", data_say="rater"), element("input", id="rater", maxlength=200, autocomplete="off"))
    return element(
        "header",
        element("div", element("h1", html.said(title, most=200)), element("p", class_="quiet small", data_say="lead")),
        element("div", name, element("button", id="language", type="button"), class_="who"),
        element("progress", id="progress", data_label="progress"),
        element("p", id="count", class_="quiet small", aria_live="polite"),
    )


def _question() -> Html:
    sides = [
        element("article", element("h2", data_say=side), element("div", class_="said"), id=side, class_="card")
        for side in ("left", "right")
    ]
    note = element("label", element("span", data_say="remark"), element("textarea", maxlength=2000, rows=2), id="remark")
    return element(
        "section",
        element("div", id="prompt"),
        element("div", *sides, class_="sides"),
        note,
        id="question",
        tabindex="-1",
    )


def _done() -> Html:
    lines = (element("h2", data_say="done"), element("p", data_say="hand_in"), element("p", id="tally", class_="quiet"))
    return element("section", *lines, id="done", class_="card", tabindex="-1", hidden=True)


def _foot() -> Html:
    choices = [
        element(
            "button",
            *(element("kbd", key) for key in keys if key),
            element("span", data_say=f"choose_{choice}"),
            type="button",
            data_choice=choice,
        )
        for choice, *keys in _KEYS
    ]
    actions = [
        element("button", element("kbd", key) if key else Html(), element("span", data_say=name), type="button", id=name)
        for name, key in _ACTIONS
    ]
    return element("footer", element("div", *choices, class_="choices"), element("div", *actions, class_="actions"))


def _data(data: Mapping[str, Any]) -> Html:
    """Data for the script, in an element that no browser runs; with no `<` in it, nothing can end the element early."""
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    return element("script", Html(text), type="application/json", id="pairs")
