"""One cleaning run as a page to show around, and as a few lines for a terminal. Knows the report's keys; counts nothing anew.

The report is a mapping of plain values, the one that is written as report.json. Every text in it may come from the data
and is escaped. What is missing or empty is left out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from math import isfinite
from typing import Any

from llmkit.report import html
from llmkit.report.html import Html, count, element, join, percent, said, unfold

Part = Mapping[str, Any]

# On the page; report.json has all.
_ROWS = 50
_BUCKETS = 30
_CLUSTERS = 20
_EXAMPLES = 10
_MARKED = 400  # characters of a changed text up to which its differences are marked: their search is quadratic
# In the terminal: 25 lines of 100 columns together.
_WIDTH = 100
_NAME = 40
_RULES = 12
_WARNINGS = 4

_SIDES = (("train", "to learn from"), ("valid", "to watch while training"), ("test", "to judge the model at the end"))
_KINDS = {
    "email": "E-mail addresses",
    "phone": "Phone numbers",
    "id_card": "ID card numbers, with a right checksum",
    "bank_card": "Bank card numbers, with a right check digit",
    "ip": "IP addresses",
}
_ACTIONS = {
    "mask": "Each was replaced by a placeholder.",
    "drop": "Each dialogue that holds one was removed.",
    "keep": "They were counted and left as they are.",
    "count": "They were counted and left as they are.",
}


def render(report: Mapping[str, Any]) -> str:
    """The page: one HTML file that asks nothing of a network and runs no script.

    `report`: "name", "read", "kept", "rejected", "quarantined", "seconds"; "sources" [{"label", "bytes", "read"}];
    "rules" in the order they ran [{"name", "title", "seen", "removed", "changed", "reasons": [{"reason", "count",
    "examples": [{"source", "id", "text", "detail"}]}], "changes": [{"source", "before", "after"}]}]; "warnings";
    "distributions" {name: {"unit", "buckets", "before", "after", "note"}} and "sampled"; "clusters"; "personal";
    "sensitive"; "split"; "config"; "versions".
    """
    parts = [(anchor, heading, part(report)) for anchor, heading, part in _SECTIONS]
    shown = [(anchor, heading, content) for anchor, heading, content in parts if content]
    name = _label(report.get("name") or "dataset")
    return html.page(
        f"Cleaning report: {name}",
        _opening(report, name),
        _warnings(report),
        html.contents({anchor: heading for anchor, heading, _ in shown}),
        *(html.section(anchor, heading, content) for anchor, heading, content in shown),
        _closing(report),
    )


def summary(report: Mapping[str, Any]) -> str:
    """The same in at most 25 lines of at most 100 columns of plain text: the waterfall, then what to look at."""
    pace = f" in {_pace(report)}" if _pace(report) else ""
    lines = [f"{_cut(_label(report.get('name') or 'dataset'), _NAME)}: cleaned{pace}", _headline(report), ""]
    lines += _steps_as_text(report)
    warnings = [f"warning: {warning}" for warning in [*_unaccounted(report), *_list(report, "warnings")]]
    extra = len(warnings) - _WARNINGS
    lines += ["", *warnings[:_WARNINGS]] if warnings else []
    lines += [f"and {extra} more warnings, all in the report"] if extra > 0 else []
    lines += [line for line in (_split_as_text(report), _personal_as_text(report)) if line]
    return "\n".join(_cut(line, _WIDTH).rstrip() for line in lines)


def _headline(report: Part) -> str:
    read, kept, rejected, quarantined = (count(report.get(key, 0)) for key in ("read", "kept", "rejected", "quarantined"))
    return f"{read} read = {kept} kept + {rejected} rejected + {quarantined} quarantined"


def _pace(report: Part) -> str:
    seconds = report.get("seconds")
    if seconds is None or not isfinite(seconds) or seconds <= 0:
        return ""
    return f"{_duration(seconds)} ({count(report.get('read', 0) / seconds)} records a second)"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:,.0f} min {seconds % 60:.0f} s"


def _unaccounted(report: Part) -> list[str]:
    """The promise of the headline, checked once more where it is read."""
    missing = report.get("read", 0) - sum(report.get(key, 0) for key in ("kept", "rejected", "quarantined"))
    return [f"the numbers do not add up: {_plural(abs(missing), 'record')} unaccounted for"] if missing else []


def _list(part: Part, key: str) -> Sequence[Any]:
    found: Sequence[Any] = part.get(key) or ()
    return found


def _label(name: object) -> str:
    """A key as words: too_few_turns → too few turns."""
    return " ".join(html.printable(name).replace("_", " ").split())


def _title(name: object) -> str:
    words = _label(name)
    return words[:1].upper() + words[1:]


def _plural(number: float, one: str, many: str = "") -> str:
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def _more(items: Sequence[Any], most: int, what: str) -> Html:
    left = len(items) - most
    return element("p", f"and {_plural(left, what)} more, in report.json", class_="quiet small") if left > 0 else Html()


# --- the page ---------------------------------------------------------------------------------------------------------


def _opening(report: Part, name: str) -> Html:
    read = report.get("read", 0)
    tiles = [
        element(
            "div",
            element("span", title, class_=f"dot {kind}"),
            element("b", percent(report.get(key, 0), read)),
            element("p", meaning),
            class_="card tile",
        )
        for key, title, kind, meaning in _FATES
    ]
    lead = [] if _unaccounted(report) else ["Every record that was read is in exactly one of the three."]
    lead += [f"Cleaning took {pace}."] if (pace := _pace(report)) else []
    return element(
        "header",
        element("p", "Cleaning report", class_="over"),
        element("h1", said(name, most=300)),
        element("p", _headline(report), class_="headline"),
        element("p", " ".join(lead), class_="quiet") if lead else Html(),
        element("div", *tiles, class_="tiles"),
    )


_FATES = (
    ("kept", "Kept", "kept", "passed every rule and is in the cleaned dataset"),
    ("rejected", "Rejected", "gone", "a readable dialogue that a rule removed; the reason is on record"),
    ("quarantined", "Quarantined", "held", "could not be read as a dialogue; set aside to look at"),
)


def _warnings(report: Part) -> Html:
    warnings = [*_unaccounted(report), *_list(report, "warnings")]
    if not warnings:
        return Html()
    items = [element("li", said(warning)) for warning in warnings[:_ROWS]]
    heading = element("h2", "Worth a second look")
    return element("aside", heading, element("ul", *items), _more(warnings, _ROWS, "warning"), class_="warnings")


def _waterfall(report: Part) -> Html:
    read, kept = report.get("read", 0), report.get("kept", 0)
    rows = [_end("Read", "all records of all sources", read, read)]
    for number, (rule, left) in enumerate(_steps(report)):
        rows.append(_step(rule, number, left=left, read=read))
    rows.append(_end("Kept", "the cleaned dataset", kept, read))
    heads = [("Rule", None), ("", None), ("Removed", "n"), ("of what it saw", "n"), ("Left", "n")]
    head = element("tr", *(element("th", text, scope="col", class_=kind) for text, kind in heads))
    legend = [("kept", "left after the rule"), ("gone", "removed by the rule")]
    return join(
        [
            element("p", "The rules in the order they ran. Each judges only what the ones above it have left.", class_="quiet"),
            element("p", *(element("span", text, class_=f"dot {kind}") for kind, text in legend), class_="legend"),
            element("table", element("thead", head), element("tbody", *rows), class_="waterfall"),
        ]
    )


def _steps(report: Part) -> list[tuple[Part, float]]:
    """Each rule with the number of records that are left after it."""
    left, steps = report.get("read", 0), []
    for rule in _list(report, "rules"):
        left -= rule.get("removed", 0)
        steps.append((rule, left))
    return steps


def _end(name: str, meaning: str, amount: float, read: float) -> Html:
    return element(
        "tr",
        element("th", element("b", name), element("div", meaning), scope="row"),
        element("td", html.bar(("kept", amount), whole=read, label=f"{count(amount)} of {count(read)}"), class_="bars"),
        element("td", class_="n removed"),
        element("td", class_="n"),
        element("td", count(amount), class_="n", data_name="records"),
        class_="ends total",
    )


def _step(rule: Part, number: int, *, left: float, read: float) -> Html:
    removed, seen = rule.get("removed", 0), rule.get("seen", 0)
    name = said(_title(rule.get("name", "")), most=80)
    asks: list[object] = [said(rule.get("title") or "", most=200)]
    if rule.get("changed"):
        asks.append(f"changed {_plural(rule['changed'], 'record')}")
    drawn = html.bar(
        ("kept", left), ("gone", removed), whole=read, label=f"{count(removed)} removed, {count(left)} of {count(read)} left"
    )
    return element(
        "tr",
        element(
            "th",
            element("a", name, href=f"#rule-{number}") if _has_story(rule) else element("b", name),
            element("div", join([part for part in asks if part], " · ")),
            scope="row",
        ),
        element("td", drawn, class_="bars"),
        element("td", count(removed), class_="n removed", data_name="removed"),
        element("td", percent(removed, seen), class_="n"),
        element("td", count(left), class_="n", data_name="left"),
        class_=None if removed else "none",
    )


def _has_story(rule: Part) -> bool:
    return bool(rule.get("removed") or rule.get("changed") or rule.get("reasons") or rule.get("changes"))


def _rules(report: Part) -> Html:
    rules = list(enumerate(_list(report, "rules")))
    told = [_rule(rule, number) for number, rule in rules if _has_story(rule)]
    silent = [said(_label(rule.get("name", "")), most=80) for _, rule in rules if not _has_story(rule)]
    if silent:
        told.append(element("p", "Removed and changed nothing: ", join(silent, ", "), ".", class_="quiet rule"))
    if not told:
        return Html()
    lead = f"Why records were removed, and up to {_EXAMPLES} real examples of each reason. Click one to open it."
    return join([element("p", lead, class_="quiet"), *told])


def _rule(rule: Part, number: int) -> Html:
    seen, removed = rule.get("seen", 0), rule.get("removed", 0)
    facts = [f"saw {count(seen)}"]
    if removed:
        facts.append(f"removed {count(removed)} ({percent(removed, seen)})")
    if rule.get("changed"):
        facts.append(f"changed {count(rule['changed'])} ({percent(rule['changed'], seen)})")
    asks = said(rule.get("title") or "", most=400)
    return element(
        "article",
        element("h3", said(_title(rule.get("name", "")), most=200)),
        element("p", asks) if rule.get("title") else Html(),
        element("p", *(element("span", fact) for fact in facts), class_="facts"),
        *(_reason(reason, removed) for reason in _list(rule, "reasons")[:_ROWS]),
        _more(_list(rule, "reasons"), _ROWS, "reason"),
        _changes(_list(rule, "changes")[:_EXAMPLES]),
        class_="card rule",
        id=f"rule-{number}",
    )


def _reason(reason: Part, removed: float) -> Html:
    amount = reason.get("count", 0)
    head = join(
        [
            said(_title(reason.get("reason", "")), most=200),
            " ",
            element("span", f"{count(amount)} · {percent(amount, removed)} of the removed", class_="n"),
        ]
    )
    examples = [_example(example) for example in _list(reason, "examples")[:_EXAMPLES]]
    none = element("p", "No example was noted.", class_="quiet small")
    return unfold(head, element("ul", *examples, class_="examples") if examples else none)


def _example(example: Part) -> Html:
    meta = [said(example.get("source") or "", most=300)]
    if example.get("id"):
        meta.append(element("code", said(example["id"], most=64)))
    if example.get("detail"):
        meta.append(said(example["detail"], most=300))
    return element("li", element("div", *map(_span, meta), class_="meta"), said(example.get("text") or "", block=True))


def _span(content: Html) -> Html:
    return element("span", content)


def _changes(changes: Sequence[Part]) -> Html:
    if not changes:
        return Html()
    items = []
    for change in changes:
        before, after = _marked(change.get("before") or "", change.get("after") or "")
        sides = [element("div", element("h4", name), text) for name, text in (("before", before), ("after", after))]
        source = element("div", _span(said(change.get("source") or "", most=300)), class_="meta")
        items.append(element("li", source, element("div", *sides, class_="change")))
    head = join(["What it changed ", element("span", _plural(len(changes), "example"), class_="n")])
    return unfold(head, element("ul", *items, class_="examples"))


def _marked(before: object, after: object) -> tuple[Html, Html]:
    """Both texts, what differs marked as deleted and inserted."""
    old, new = html.printable(before), html.printable(after)
    if max(len(old), len(new)) > _MARKED:
        return said(old, block=True), said(new, block=True)
    left: list[object] = []
    right: list[object] = []
    for kind, start, end, begin, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same = kind == "equal"
        left.append(old[start:end] if same or start == end else element("del", old[start:end]))
        right.append(new[begin:stop] if same or begin == stop else element("ins", new[begin:stop]))
    texts = ((left, old), (right, new))
    marked = [html.quoted(join(parts), language=html.language_of(text), block=True) for parts, text in texts]
    return marked[0], marked[1]


def _distributions(report: Part) -> Html:
    cards = [_distribution(name, one) for name, one in (report.get("distributions") or {}).items() if one.get("buckets")]
    if not cards:
        return Html()
    sampled = report.get("sampled")
    how = f"Measured on one record in {count(sampled)}." if sampled and sampled > 1 else "Measured on every record."
    lead = f"How many dialogues fall in each group: all that could be read, and those that were kept. {how}"
    return join([element("p", lead, class_="quiet"), element("div", *cards, class_="grid")])


def _distribution(name: str, one: Part) -> Html:
    buckets, before, after = (list(one.get(key) or ()) for key in ("buckets", "before", "after"))
    if len(buckets) > _BUCKETS:
        rest = len(buckets) - _BUCKETS + 1
        buckets[_BUCKETS - 1 :] = [f"{count(rest)} more"]
        before[_BUCKETS - 1 :] = [sum(before[_BUCKETS - 1 :])]
        after[_BUCKETS - 1 :] = [sum(after[_BUCKETS - 1 :])]
    notes = [said(text, most=300) for text in (one.get("unit"), one.get("note")) if text and text != name]
    return element(
        "div",
        element("h3", said(_title(name), most=80)),
        element("p", join(notes, " · "), class_="quiet small"),
        html.paired_bars(buckets, before, after),
        class_="card",
    )


def _clusters(report: Part) -> Html:
    clusters = _list(report, "clusters")
    if not clusters:
        return Html()
    lead = "Dialogues that say nearly the same. One of each group stays, the others are removed. The largest groups first."
    cards = [_cluster(cluster) for cluster in clusters[:_CLUSTERS]]
    return join([element("p", lead, class_="quiet"), *cards, _more(clusters, _CLUSTERS, "group")])


def _cluster(cluster: Part) -> Html:
    members = _list(cluster, "members")[:_EXAMPLES]
    rows = [
        (
            said(member.get("source") or "", most=300),
            element("code", said(member.get("id") or "", most=64)),
            _similarity(member.get("similarity")),
        )
        for member in members
    ]
    kept = element("code", said(cluster["kept"], most=64)) if cluster.get("kept") else html.UNKNOWN
    head = join([_plural(cluster.get("size", 0), "dialogue"), element("span", "kept: ", kept, class_="n")], " ")
    listed = html.table(["Where it stood", "Id", "Similarity"], rows, numbers=[2]) if rows else Html()
    return element(
        "article",
        element("h3", head),
        said(cluster.get("text") or "", block=True),
        unfold(f"Show {count(len(rows))} of them", listed) if rows else Html(),
        class_="card rule",
    )


def _similarity(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else html.UNKNOWN


def _private(report: Part) -> Html:
    personal, sensitive = report.get("personal"), report.get("sensitive")
    parts: list[Html] = []
    if personal:
        kinds: Mapping[str, int] = personal.get("kinds") or {}
        most = max(kinds.values(), default=0)
        rows = [
            (said(_KINDS.get(kind, _title(kind)), most=80), html.bar(("after", number), whole=most), count(number))
            for kind, number in kinds.items()
        ]
        does = _ACTIONS.get(str(personal.get("action")), "")
        lead = (
            f"Found by pattern and checksum. {does} A pattern cannot find what is written in words."
            if kinds
            else "None was found."
        )
        parts += [element("p", lead, class_="quiet"), html.table(["Kind", "", "Found"], rows, numbers=[2]) if rows else Html()]
    if sensitive:
        found = _plural(sensitive.get("count", 0), "sensitive word")
        does = _ACTIONS.get(str(sensitive.get("action")), "") if sensitive.get("count") else ""
        parts.append(element("p", f"{found} from the given lists. {does}", class_="rule"))
    return join(parts)


def _split(report: Part) -> Html:
    split = report.get("split")
    if not split:
        return Html()
    total = sum(split.get(side, 0) for side, _ in _SIDES)
    legend = [
        element(
            "span", f"{side} {count(split.get(side, 0))} ({percent(split.get(side, 0), total)}), {use}", class_=f"dot {side}"
        )
        for side, use in _SIDES
    ]
    lead = "A model must not be judged on what it has learned from: nearly equal dialogues belong in the same part."
    return element(
        "div",
        element("p", lead, class_="quiet"),
        html.bar(*((side, split.get(side, 0)) for side, _ in _SIDES), whole=total),
        element("p", *legend, class_="legend"),
        *_leaks(split),
        _strata(_list(split, "strata")),
        class_="split",
    )


def _leaks(split: Part) -> Iterable[Html]:
    leaks, near = split.get("leaks"), split.get("near")
    if leaks is not None:
        verdict = (
            f"✗ {_plural(leaks, 'leak')} from train into valid or test" if leaks else "✓ No leak between train and the rest"
        )
        yield element("p", verdict, class_=f"verdict {'bad' if leaks else 'good'}")
    facts = [f"checked: {split['checked']}"] if split.get("checked") else []
    if near is not None:
        facts.append(f"a leak is a pair whose similarity is at least {near:g} (1 is equal)")
    if split.get("families") is not None:
        facts.append(
            f"{_plural(split['families'], 'group')} of nearly equal dialogues (what is like no other is a group of its own)"
        )
    if split.get("moved"):
        facts.append(f"{_plural(split['moved'], 'dialogue')} moved to the side of what they nearly repeat")
    yield element("p", join([said(fact) for fact in facts], "; "), class_="quiet small")


def _strata(strata: Sequence[Part]) -> Html:
    if not strata:
        return Html()
    rows = [
        (
            said(one.get("source") or "", most=300),
            said(one.get("language") or "", most=40),
            *(count(one.get(side, 0)) for side, _ in _SIDES),
        )
        for one in strata[:_ROWS]
    ]
    drawn = html.table(["Source", "Language", *(side for side, _ in _SIDES)], rows, numbers=[2, 3, 4])
    return unfold("Each source and language, part by part", drawn, _more(strata, _ROWS, "line"))


def _sources(report: Part) -> Html:
    sources = _list(report, "sources")
    if not sources:
        return Html()
    rows = [
        (said(one.get("label") or "", most=300), _bytes(one.get("bytes")), count(one.get("read", 0))) for one in sources[:_ROWS]
    ]
    return join([html.table(["Source", "Size", "Records read"], rows, numbers=[1, 2]), _more(sources, _ROWS, "source")])


def _bytes(size: float | None) -> str:
    if size is None:
        return html.UNKNOWN
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _settings(report: Part) -> Html:
    parts = [("The recipe that was followed", report.get("config")), ("Versions", report.get("versions"))]
    drawn = [
        unfold(
            title,
            html.table(
                ["Setting", "Value"],
                [(element("code", said(key, most=200)), element("code", said(value))) for key, value in _flat(values)],
            ),
        )
        for title, values in parts
        if values
    ]
    return join(drawn)


def _flat(values: Part, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names and JSON values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _closing(report: Part) -> Html:
    version = (report.get("versions") or {}).get("llmkit", "")
    made = join(["Made by llmkit ", said(version, most=40)]) if version else Html("Made by llmkit")
    return element("footer", made, ". The same numbers for machines: report.json.")


_SECTIONS = (
    ("waterfall", "From what was read to what was kept", _waterfall),
    ("rules", "What each rule did, with examples", _rules),
    ("distributions", "The data before and after", _distributions),
    ("clusters", "Largest groups of near-duplicates", _clusters),
    ("private", "Personal data and sensitive words", _private),
    ("split", "Division into train, valid and test", _split),
    ("sources", "Where the data came from", _sources),
    ("settings", "Settings of this run", _settings),
)


# --- the terminal -----------------------------------------------------------------------------------------------------


def _steps_as_text(report: Part) -> list[str]:
    rows = [("rule", "removed", "of seen", "left")]
    steps = _steps(report)
    told = _worth_telling(steps)
    for rule, left in told:
        removed = rule.get("removed", 0)
        rows.append((_label(rule.get("name", "")), count(removed), percent(removed, rule.get("seen", 0)), count(left)))
    if len(told) < len(steps):
        rest = sum(rule.get("removed", 0) for rule, _ in steps) - sum(rule.get("removed", 0) for rule, _ in told)
        rows.append((f"{len(steps) - len(told)} other rules", count(rest), "", ""))
    numbers = [max(len(row[column]) for row in rows) for column in (1, 2, 3)]
    room = min(max(_cells(row[0]) for row in rows), _NAME)
    return [
        "  ".join([_fit(name, room), *(text.rjust(size) for text, size in zip(texts, numbers, strict=True))])
        for name, *texts in rows
    ]


def _worth_telling(steps: list[tuple[Part, float]]) -> list[tuple[Part, float]]:
    """All, or those that removed the most where there are too many; in the order they ran."""
    if len(steps) <= _RULES:
        return steps
    ranked = sorted(range(len(steps)), key=lambda number: -steps[number][0].get("removed", 0))
    return [steps[number] for number in sorted(ranked[: _RULES - 1])]


def _split_as_text(report: Part) -> str:
    split = report.get("split")
    if not split:
        return ""
    sides = ", ".join(f"{count(split.get(side, 0))} {side}" for side, _ in _SIDES)
    return f"split: {sides}; {_plural(split.get('leaks') or 0, 'leak')}"


def _personal_as_text(report: Part) -> str:
    kinds = (report.get("personal") or {}).get("kinds") or {}
    if not kinds:
        return ""
    found = ", ".join(f"{count(number)} {_label(kind)}" for kind, number in kinds.items())
    return f"personal data ({report['personal'].get('action', '')}): {found}"


def _cells(text: str) -> int:
    """Columns that `text` takes in a terminal: Han characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _fit(text: str, width: int) -> str:
    """Exactly `width` columns."""
    from rich.cells import set_cell_size

    return set_cell_size(_cut(text, width), width)


def _cut(text: str, width: int) -> str:
    """One line of at most `width` columns; what turns the reading direction would turn the table."""
    from rich.cells import set_cell_size

    line = html.printable(text).translate(_UNTERMINAL)
    return line if _cells(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNTERMINAL: dict[int, str | None] = {ord(char): None for char in _TURNS} | {ord(char): " " for char in "\n\t\u2028\u2029"}
