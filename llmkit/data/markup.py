"""Web pages' noise in dialogues: URLs and HTML. Knows what is a tag and what is a comparison; fetches nothing."""

import html
import re
from html.entities import html5
from typing import Literal

from llmkit.data.filters import Changed, Rejection, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import BETWEEN, joined, spread

URL_MASK = "<URL>"
# ASCII only, so that Chinese beside a URL is no part of it; brackets only in pairs, for Markdown puts URLs in brackets.
_URL = re.compile(
    r"(?:(?<![A-Za-z])(?:https?|ftp)://|(?<![\w.@-])www\.(?=[a-z0-9]))(?:[\w.~:/?#@!$&'*+,;=%-]++|\([\w.~:/?#@!$&'*+,;=%-]*+\))++",
    re.ASCII | re.IGNORECASE,
)
_SENTENCE_ENDS = ".,;:!?'*"

_VOID = "br|hr|img|wbr"
_PAIRED = (
    "a|abbr|article|aside|audio|b|big|blockquote|body|button|center|dd|del|div|dl|dt|em|figcaption|figure|font|footer|form|"
    "h[1-6]|head|header|html|i|iframe|ins|label|li|link|main|mark|meta|nav|ol|p|pre|q|s|script|section|small|span|strike|"
    "strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|video"
)
_BLOCK = re.compile("article|blockquote|br|dd|div|dl|dt|h[1-6]|hr|li|ol|p|pre|section|table|tr|ul")
_BREAKS = frozenset(_VOID.split("|"))
_ATTRIBUTES = (
    r"(?:\s++[a-z@:][\w:.-]*+\s*+=\s*+(?:\"[^\"<>]*+\"|'[^'<>]*+'|[^\s\"'<>=]++)"
    r"|\s++(?:allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|loop|muted|open|required|selected)\b)*+"
)
_TAG = re.compile(rf"<(/?)({_VOID}|{_PAIRED})(?=[\s/>])({_ATTRIBUTES})\s*+/?>", re.IGNORECASE)
_UNSEEN = re.compile(r"<(!--|script(?=[\s>])|style(?=[\s>]))", re.IGNORECASE)
_ENDS = {
    "!--": re.compile("-->"),
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
}
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8}\d?);")
_ADDRESS = r"(?:https?://|www\.|data:image/)[^\s()<>]*+(?:\([^\s()<>]*+\)[^\s()<>]*+)*+"
_LINK = re.compile(rf"!?\[([^\[\]\n]*+)\]\({_ADDRESS}(?: \"[^\"\n]*+\")?\)")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]++`)", re.DOTALL)


def urls(*, action: Literal["mask", "drop"]) -> Rule:
    """What to do with URLs (http, https, ftp, www.): put `<URL>` in their place, or drop the dialogue; both named `url`.

    A URL is ASCII, and ends before the full stop of its sentence.
    """

    def judge(record: Record) -> Verdict:
        text = joined(record)
        if "://" not in text and "ww." not in text and "WW." not in text:
            return record
        if action == "drop":
            found = _URL.search(text)
            return record if found is None else Rejection("url", found[0][:200])
        masked, count = _URL.subn(_mask, text)
        return Changed(spread(record, masked), {"url": count}) if count else record

    return judge


def markup(*, action: Literal["strip", "drop"]) -> Rule:
    """What to do with HTML tags, entities and Markdown links to the web: strip them, or drop the dialogue that holds any.

    What is left is what a browser would show: the words of a link, the alternative text of an image, a new line for a
    block. Only tags that HTML has are taken, so `a < b > c` and `List<int>` stay, and so does a bare `<b>` that nothing
    closes. Code, fenced or in back quotes, stays as it is. Reason, and what is counted: `markup`.
    """

    def judge(record: Record) -> Verdict:
        text = joined(record)
        if "<" not in text and "&" not in text and "](" not in text:
            return record
        shown = BETWEEN.join([strip(one) for one in text.split(BETWEEN)])
        if shown == text:
            return record
        if action == "drop":
            return Rejection("markup", _first_change(text, shown))
        return Changed(spread(record, shown), {"markup": 1})

    return judge


def strip(text: str) -> str:
    """`markup` for one text; white space at its ends goes where a tag went."""
    parts = _CODE.split(text)
    shown = [part if index % 2 else _show(part) for index, part in enumerate(parts)]
    return text if shown == parts else "".join(shown).strip()


def _mask(found: re.Match[str]) -> str:
    url = found[0]
    return URL_MASK + url[len(url.rstrip(_SENTENCE_ENDS)) :]


def _show(text: str) -> str:
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "<" in text:
        text = _without_tags(_without_unseen(text))
    return _ENTITY.sub(_character, text) if "&" in text else text


def _without_unseen(text: str) -> str:
    """Without comments, scripts and styles; one that nothing ends stays."""
    parts, done, endless = [], 0, set[str]()
    for found in _UNSEEN.finditer(text):
        kind = found[1].lower()
        if found.start() < done or kind in endless:
            continue
        end = _ENDS[kind].search(text, found.end())
        if end is None:
            # So there is none for the next one either: to look again and again would take quadratic time.
            endless.add(kind)
        else:
            parts.append(text[done : found.start()])
            done = end.end()
    return "".join((*parts, text[done:]))


def _without_tags(text: str) -> str:
    closed: dict[str, bool] = {}
    lower = text.lower()

    def shown(found: re.Match[str]) -> str:
        end, name, attributes = found[1], found[2].lower(), found[3]
        if not end and not attributes and name not in _BREAKS:
            # Bare and never closed it may as well be a type or a variable: List<Section>, a <b> c.
            if name not in closed:
                closed[name] = f"</{name}" in lower
            if not closed[name]:
                return found[0]
        return "\n" if _BLOCK.fullmatch(name) and (end or name in _BREAKS) else ""

    return _TAG.sub(shown, text)


def _character(found: re.Match[str]) -> str:
    if found[0][1] != "#":
        # Not html.unescape, which reads &copyright; as ©right;
        return html5.get(found[0][1:], found[0])
    shown = html.unescape(found[0])
    # What is no character (NUL, a surrogate, beyond Unicode) comes back as nothing or as U+FFFD.
    return found[0] if shown in ("", "\ufffd") else shown


def _first_change(before: str, after: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return before[max(0, start - 10) : start + 40].replace(BETWEEN, " ")
