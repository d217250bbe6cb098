"""Pages that need nothing but themselves: no font, no network, no script but one they carry. Knows HTML and how data is
made safe in it.

Whatever is not `Html` is escaped on its way in, so a text from the data can never become markup.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape as _escape
from itertools import zip_longest
from pathlib import Path

# No 'self' anywhere: the page can load nothing, not even its neighbours.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
UNKNOWN = "–"
EXCERPT = 1200  # characters of one text that are shown

# By script, the first that fits; it picks the right glyphs for Han characters and the voice of a screen reader.
_LANGUAGES = tuple(
    (language, re.compile(characters))
    for language, characters in (
        ("ja", "[\u3040-\u30ff]"),
        ("ko", "[\uac00-\ud7af]"),
        ("zh", "[\u3400-\u9fff\U00020000-\U0003ffff]"),
        ("ru", "[\u0400-\u04ff]"),
        ("ar", "[\u0600-\u06ff]"),
        ("he", "[\u0590-\u05ff]"),
    )
)
# What HTML cannot hold or a reader cannot see: control characters as pictures (␛), no half of a surrogate pair, and
# no override that shows English backwards.
_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {127: 0x2421, 0x202D: "⟨U+202D⟩", 0x202E: "⟨U+202E⟩"}
_UNPRINTABLE = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def printable(text: object) -> str:
    """`text` as a string that every encoding of Unicode and every page can hold; line feeds and tabs stay."""
    return _UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n").translate(_PICTURES))


def escape(text: object) -> Html:
    """`text` as markup that shows it, in content and in quoted attributes; `Html` passes through."""
    return text if isinstance(text, Html) else Html(_escape(printable(text), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(escape(between).join(map(escape, parts)))


def element(name: str, *children: object, **attributes: object) -> Html:
    """`<name attributes>children</name>`.

    `class_` gives class, `aria_label` gives aria-label; an attribute that is None or False is left out, True has no value.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def said(text: object, *, block: bool = False, most: int = EXCERPT) -> Html:
    """A text from the data, its direction and language its own; at most `most` characters of it."""
    shown = excerpt(text, most)
    return quoted(shown, language=language_of(shown), block=block)


def excerpt(text: object, most: int) -> str:
    """`printable(text)`, cut to `most` characters and marked where it is; of a long text no more is looked at."""
    # A line feed may have been two characters.
    shown = printable(str(text)[: 2 * most + 2])
    return shown if len(shown) <= most else shown[:most] + "…"


def line(text: object, most: int = 200) -> str:
    """At most `most` characters of `text` in one line, for a name."""
    return " ".join(excerpt(text, most).split())


def quoted(content: object, *, language: str | None, block: bool) -> Html:
    """`content` set apart, so that no right-to-left character in it turns round what stands beside it."""
    if block:
        return element("div", content, class_="said", dir="auto", lang=language)
    return element("bdi", content, lang=language)


def language_of(text: str) -> str | None:
    """The `lang` of a text as far as its script tells; None: the page's own."""
    return next((language for language, characters in _LANGUAGES if characters.search(text)), None)


def count(value: float) -> str:
    """1234567 → 1,234,567."""
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """38.9 %. What is not nothing never shows as 0.0 %, what is not all never as 100.0 %."""
    if not whole:
        return UNKNOWN
    share = 100 * part / whole
    if share in (0, 100):
        return f"{share:.0f} %"
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def bar(*parts: tuple[str, float], whole: float, label: str | None = None) -> Html:
    """A horizontal bar: (class, amount) side by side, `whole` the full length. `label` tells it to who cannot see it."""
    pieces = []
    for kind, amount in parts:
        share = min(max(amount / whole, 0.0), 1.0) if whole else 0.0
        pieces.append(element("span", class_=kind, style=f"width:{100 * share:.3f}%") if share else Html())
    named = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true"}
    return element("span", *pieces, class_="bar", **named)


def paired_bars(labels: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Html:
    """Two bars a label, all on one scale, with both numbers in words."""
    longest = max([0, *before, *after])
    rows = []
    for label, was, now in zip_longest(labels, before, after, fillvalue=0):
        bars = [bar(("before", float(was)), whole=longest), bar(("after", float(now)), whole=longest)]
        rows.append(
            element(
                "tr",
                element("th", said(label, most=40), scope="row"),
                element("td", *bars, class_="bars"),
                element("td", count(float(was)), class_="n quiet"),
                element("td", count(float(now)), class_="n"),
            )
        )
    heads = [element("th", text, scope="col", class_=kind) for text, kind in _PAIR]
    return element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="pairs")


_PAIR = (("", None), ("", None), ("before", "n key-before"), ("after", "n key-after"))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls by itself where it is too wide; the columns `numbers` are set flush right."""
    right = set(numbers)
    kinds = ["n" if column in right else None for column in range(len(headings))]
    heads = [element("th", text, scope="col", class_=kind) for text, kind in zip(headings, kinds, strict=True)]
    body = [element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return element(
        "div",
        element("table", element("thead", element("tr", *heads)), element("tbody", *body)),
        class_="scroll",
        tabindex="0",
    )


def unfold(summary: object, *content: object, **attributes: object) -> Html:
    """Content that opens on a click and needs no script."""
    return element("details", element("summary", summary), *content, **attributes)


def section(anchor: str, heading: str, *content: object) -> Html:
    return element("section", element("h2", heading), *content, id=anchor)


def contents(sections: Mapping[str, str]) -> Html:
    """Links to the sections: anchor → heading."""
    links = [element("a", heading, href=f"#{anchor}") for anchor, heading in sections.items()]
    return element("nav", *links, aria_label="Sections")


def page(title: str, *body: object, script: str = "", style: str = "") -> str:
    """The whole file. It is UTF-8 and ends in a line feed; follows https://html.spec.whatwg.org/.

    `script` and `style` are code of ours, never text from the data. The page may run that script and no other; its hash
    stands in the policy (https://www.w3.org/TR/CSP3/).
    """
    policy = f"{POLICY}; script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" if script else POLICY
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'  # else a server is asked for one
        f"<title>{escape(title)}</title>\n<style>\n{beside('page.css')}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{join(body)}\n</main>\n" + (f"<script>{script}</script>\n" if script else "") + "</body>\n</html>\n"
    )


@cache
def beside(name: str) -> str:
    """The text of a style sheet or script that lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
