"""One evaluation as a page to show around, and in short as Markdown. Knows the order of things and the gate's words; what
was measured is drawn by `scores`, what to ship is chosen by `recommend`.

Every text in it may come from the data and is escaped. What is missing is left out.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmkit.report import brief, html, markdown, recommend, scores, table, values, verdict
from llmkit.report.html import Html, element, join, said, unfold
from llmkit.report.recommend import Choice
from llmkit.report.values import Part, finite, part, parts
from llmkit.report.worst import worst

_ROWS = 50  # of one table; report.json has all
_VERDICTS = {
    "pass": ("good", "✓ The gate passed", "Pass"),
    "fail": ("bad", "✗ The gate failed", "Fail"),
    "unknown": ("", "? The gate cannot tell", "Cannot tell"),
}
_ORDER = {"fail": 0, "unknown": 1, "pass": 2}


def page(report: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    """The page: one HTML file that asks nothing of a network and runs no script.

    Args:
        report: report.json. Beside what `table.render` reads: "reference", "gate", "breakdown", "tasks", "code", "review",
            "lineage", "command", "settings", "signatures", "warnings"; in a model "intervals", "divergence" and "drops".
        samples: lines of samples.jsonl; "scores": {NAME: ROUGE-L} picks the ones to show.
    """
    choice = recommend.choose(report)
    sections = [
        ("gate", "The gate", _gate(report)),
        ("ship", "What to ship", _advice(choice)),
        ("variants", "The variants", scores.variants(report) if values.rows(report) else Html()),
        ("scores", "Scores with 95 % intervals", scores.intervals(report)),
        ("trade-off", "Quality against size and speed", scores.trade_offs(report, choice.refused)),
        ("distance", "Perplexity and distance from the reference", scores.distances(report)),
        ("breakdown", "By kind of question", scores.breakdown(report)),
        ("tasks", "Benchmarks", _tasks(report)),
        ("code", "Generated code", _code(report)),
        ("review", "What people prefer", _review(report)),
        ("worst", "Answers that fell the most", worst(report, samples)),
        ("lineage", "Where it came from", _lineage(report)),
        ("again", "Measure it again", _again(report)),
    ]
    shown = [one for one in sections if one[2]]
    name = said(report.get("name") or "Evaluation", most=200)
    return html.page(
        f"Evaluation report: {html.line(report.get('name') or report.get('reference') or '')}",
        _opening(report, choice, name),
        _warnings(report),
        html.contents({anchor: heading for anchor, heading, _ in shown}),
        *(html.section(*one) for one in shown),
        element("footer", "Made by llmkit. The same for machines: report.json and samples.jsonl."),
        style=html.beside("evaluation.css"),
    )


def summary(report: Mapping[str, Any]) -> str:
    """Gate, advice, table and warnings as GitHub Markdown, for a CI job's summary page."""
    gate, choice = part(report, "gate"), recommend.choose(report)
    parts = [verdict.markdown(gate)] if gate else []
    parts += [markdown.escaped(" ".join(choice.because), most=1000)] if choice.because else []
    parts += [table.markdown(report)] if values.rows(report) else []
    told = brief.lines(report)[1 if choice.because else 0 :] + list(values.items(report, "warnings"))
    return "\n\n".join([*parts, "\n".join(f"- {markdown.escaped(one, most=300)}" for one in told[:_ROWS])]).strip()


# --- the opening ------------------------------------------------------------------------------------------------------


def _opening(report: Part, choice: Choice, name: Html) -> Html:
    colour, _, word = _VERDICTS.get(str(part(report, "gate").get("verdict")), ("", "", "None set"))
    count, settings = finite(report.get("n_samples")), part(report, "settings")
    tiles = [
        ("Gate", word, _gate_in_short(report), colour),
        ("Ship", said(choice.name or html.UNKNOWN, most=40), _ship_in_short(report, choice), ""),
        ("Questions", html.UNKNOWN if count is None else html.count(count), _decoding(settings), ""),
    ]
    cards = [
        element(
            "div",
            element("span", title, class_="quiet small"),
            element("b", value),
            element("p", meaning),
            class_=f"card tile {kind}",
        )
        for title, value, meaning, kind in tiles
    ]
    return element(
        "header",
        element("p", "Evaluation report", class_="over"),
        element("h1", name),
        element("p", said(choice.because[0], most=400), class_="headline") if choice.because else Html(),
        element("div", *cards, class_="tiles"),
    )


def _gate_in_short(report: Part) -> str:
    checks = _checks(report)
    if not checks:
        return "without limits to hold, nothing passes or fails"
    bad = [sum(check.get("verdict") == one for check in checks) for one in ("fail", "unknown")]
    return f"{len(checks)} checks: {bad[0]} failed, {bad[1]} undecided"


def _ship_in_short(report: Part, choice: Choice) -> str:
    if choice.name is None:
        return "no variant qualifies" if choice.because else "nothing to choose between"
    row = part(report, "models", choice.name)
    return f"{table.size(row.get('size_bytes'))}, {table.spelled(row.get('tokens_per_second'), 1)} tokens a second"


def _decoding(settings: Part) -> Html:
    told = [
        settings.get("decoding"),
        settings.get("max_new_tokens") and f"at most {settings['max_new_tokens']} tokens an answer",
    ]
    return said(", ".join(str(one) for one in told if one) or "answered by every variant", most=120)


def _warnings(report: Part) -> Html:
    found = values.items(report, "warnings")
    if not found:
        return Html()
    items = [element("li", said(one)) for one in found[:_ROWS]]
    return element("aside", element("h2", "Worth a second look"), element("ul", *items), class_="warnings")


# --- the gate and the advice ------------------------------------------------------------------------------------------


def _checks(report: Part) -> list[Part]:
    found = parts(part(report, "gate"), "checks")
    return sorted(found, key=lambda check: _ORDER.get(str(check.get("verdict")), 1))


def _gate(report: Part) -> Html:
    said_by_gate = str(part(report, "gate").get("verdict"))
    if said_by_gate not in _VERDICTS:
        return Html()
    colour, words, _ = _VERDICTS[said_by_gate]
    checks = _checks(report)
    headings = ["Variant", "What", "Limit", "Measured", "Baseline", "Drop", "at least", "Verdict", "Why"]
    lines = [[cell(check) for cell in _CHECK] for check in checks[:_ROWS]]
    more = f"and {len(checks) - _ROWS} more checks, in report.json" if len(checks) > _ROWS else ""
    lead = "A drop fails where it exceeds its limit and its lower bound, “at least”, lies above 0; neither alone does."
    return join(
        [
            element("p", words, class_=f"verdict {colour}"),
            element("p", lead, class_="quiet"),
            html.table(headings, lines, numbers=range(2, 7)) if lines else Html(),
            element("p", more, class_="quiet small") if more else Html(),
        ]
    )


def _short(value: object) -> str:
    """A number of any size in four digits."""
    found = finite(value)
    if found is None:
        return table.UNKNOWN
    return html.count(found) if abs(found) >= 10_000 else f"{found:.4g}"


def _check_number(key: str) -> Callable[[Part], object]:
    def cell(check: Part) -> object:
        value = check.get(key)
        return table.size(value) if "size" in str(check.get("metric")) and finite(value) is not None else _short(value)

    return cell


def _check_name(check: Part) -> Html:
    known = scores.PLOTTED.get(str(check.get("metric")))
    what = known.title if known else str(check.get("metric") or "").replace("_", " ")
    kind = str(check.get("kind") or "").replace("_", " ")
    return join([said(what, most=60), element("div", said(kind, most=60), class_="ends")])


def _check_verdict(check: Part) -> Html:
    colour, _, word = _VERDICTS.get(str(check.get("verdict")), ("", "", html.UNKNOWN))
    return element("span", word, class_=f"verdict-word {colour}")


_CHECK: tuple[Callable[[Part], object], ...] = (
    lambda check: said(check.get("model") or "", most=60),
    _check_name,
    *map(_check_number, ("limit", "value", "baseline", "drop", "lower_bound")),
    _check_verdict,
    lambda check: said(check.get("why") or "", most=300),
)


def _advice(choice: Choice) -> Html:
    if not choice.because:
        return Html()
    why = [element("p", said(" ".join(choice.because), most=1200))]
    refused = [
        element("li", element("b", said(name, most=60)), " ", said(reason, most=300))
        for name, reason in list(choice.refused.items())[:_ROWS]
    ]
    if refused:
        why += [element("p", "Not to be shipped:", class_="rule"), element("ul", *refused, class_="advice")]
    rule = (
        "The rule: of the variants that keep what the reference does, the smallest; of those within 5 % of its size, the one "
        "nearest to the reference. A variant is out if it lost the fine-tune, failed the gate, or scores more than "
        f"{recommend.TOLERANCE} points lower by more than chance. Differences that may be chance count as none."
    )
    return join([*why, element("p", rule, class_="quiet small rule")])


# --- tasks, code, people ----------------------------------------------------------------------------------------------


def _tasks(report: Part) -> Html:
    tasks, names = part(report, "tasks"), list(scores.drawn(report))
    lines = []
    for task in tasks:
        held = part(tasks, task)
        metrics = dict.fromkeys(
            str(metric) for name in names for metric in part(held, name) if not str(metric).endswith("_stderr")
        )
        lines += [
            [said(task, most=60), said(metric, most=40), *(_with_error(part(held, name), metric) for name in names)]
            for metric in metrics
        ]
    if not lines:
        return Html()
    headings = ["Task", "Metric", *(said(name, most=60) for name in names)]
    lead = "Through lm-evaluation-harness, with the chat template that the model was trained on; ± standard error."
    return join([element("p", lead, class_="quiet"), html.table(headings, lines[:_ROWS], numbers=range(2, len(headings)))])


def _with_error(held: Part, metric: str) -> Html:
    value, error = table.spelled(held.get(metric), 3), finite(held.get(f"{metric}_stderr"))
    return join([value] if error is None else [value, element("div", f"± {error:.3f}", class_="ends")])


def _code(report: Part) -> Html:
    code = part(report, "code")
    rows = {str(name): part(code, name) for name in code if part(code, name)}
    keys = dict.fromkeys(str(key) for row in rows.values() for key, value in row.items() if finite(value) is not None)
    if not keys:
        return Html()
    lines = [
        [said(name, most=60), *(scores.with_interval(_short(row.get(key)), values.interval(row, key)) for key in keys)]
        for name, row in list(rows.items())[: scores.MOST_ROWS]
    ]
    headings = ["", *(said(key.replace("_", " "), most=40) for key in list(keys)[:20])]
    lead = "Programs written by the model, run in a sandbox against tests. pass@k: the chance that one of k attempts is right."
    return join(
        [
            element("p", lead, class_="quiet"),
            html.table(headings, [line[: len(headings)] for line in lines], numbers=range(1, len(headings))),
        ]
    )


def _review(report: Part) -> Html:
    """What `metrics.ratings.win_rates` counted, with the names of the two, the winner's of "wins" first, as "models"."""
    found = part(report, "review")
    counted = {key: finite(found.get(key)) or 0 for key in ("wins", "ties", "bad", "losses")}
    whole = sum(counted.values())
    if not whole:
        return Html()
    model, against = (said(name, most=60) for name in [*values.items(found, "models"), "?", "?"][:2])
    names = {"wins": join([model, " better"]), "ties": "equally good", "bad": "both bad", "losses": join([against, " better"])}
    colours = {"wins": "kept", "ties": "before", "bad": "test", "losses": "gone"}
    legend = [
        element("span", names[key], f" {html.count(number)}", class_=f"dot {colours[key]}") for key, number in counted.items()
    ]
    rate, ends = finite(found.get("win_rate")), [finite(end) for end in values.items(found, "interval")]
    told = [f"{100 * rate:.0f} % of the time"] if rate is not None else []
    known = [100 * end for end in ends if end is not None]
    told += [f"(95 % interval {known[0]:.0f}–{known[1]:.0f} %)"] if len(known) == 2 else []
    return element(
        "div",
        element("p", model, " is preferred to ", against, " ", " ".join(told), ", equally good and both bad counting half.")
        if told
        else Html(),
        html.bar(*((colours[key], number) for key, number in counted.items()), whole=whole),
        element("p", *legend, class_="legend"),
        element("p", said(_raters(found)), class_="quiet small"),
        class_="won",
    )


def _raters(found: Part) -> str:
    raters, items, same = (finite(found.get(key)) or 0 for key in ("raters", "items", "identical"))
    agreement = finite(found.get("agreement"))
    told = [f"{html.count(raters)} {'rater' if raters == 1 else 'raters'}, {html.count(items)} questions rated blind"]
    told += [f"{html.count(same)} with equal answers count as ties"] if same else []
    told += [f"agreement {agreement:.2f} (Krippendorff's alpha: 1 perfect, 0 chance)"] if agreement is not None else []
    return "; ".join(told)


# --- where it came from -----------------------------------------------------------------------------------------------


def _lineage(report: Part) -> Html:
    chain = parts(report, "lineage")[:_ROWS]
    if not chain:
        return Html()
    names = {str(one.get("fingerprint")): str(one.get("name")) for one in chain}
    lead = "Each step down to the data. A fingerprint is a hash of a step's settings and of all that went into it."
    return join([element("p", lead, class_="quiet"), element("ol", *(_link(one, names) for one in chain), class_="chain")])


def _link(one: Part, names: Mapping[str, str]) -> Html:
    inputs = part(one, "inputs")
    made_of = [
        join([f"{html.line(role, 40)}: ", said(names.get(str(inputs[role]), ""), most=60), " ", _hash(inputs[role])])
        for role in list(inputs)[:_ROWS]
    ]
    facts = [f"{key}: {value}" for key, value in _flat(part(one, "facts"))][:12]
    return element(
        "li",
        element("b", said(one.get("name") or one.get("step") or "", most=100)),
        " ",
        element("span", said(one.get("step") or "", most=40), class_="quiet"),
        " ",
        _hash(one.get("fingerprint")),
        element("div", "from ", join(made_of, ", "), class_="small") if made_of else Html(),
        element("div", join([said(fact, most=160) for fact in facts], " · "), class_="quiet small") if facts else Html(),
    )


def _hash(fingerprint: object) -> Html:
    text = html.line(fingerprint or "")
    return element("code", text[:16], title=text, class_="quiet") if text else Html()


def _flat(of: Part, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names and JSON values."""
    for key, value in of.items():
        if isinstance(value, Mapping) and value and prefix.count(".") < 4:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _again(report: Part) -> Html:
    command = report.get("command")
    shown = element("pre", element("code", said(command, most=4000))) if command else Html()
    tables = [
        unfold(
            title,
            html.table(
                [heading, ""], [(element("code", said(key, most=200)), element("code", said(value))) for key, value in found]
            ),
        )
        for title, heading, found in (
            ("Settings", "Setting", list(_flat(part(report, "settings")))[:_ROWS]),
            ("Signatures: how each score is defined", "Score", list(_flat(part(report, "signatures")))[:_ROWS]),
        )
        if found
    ]
    return join([shown, *tables])
