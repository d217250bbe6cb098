"""The measured part of an evaluation's page: scores with intervals, quality against size and speed, distance from the
reference, parts of the data. Knows the report's keys; chooses and computes nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmkit.report import html, plots, recommend, table, values
from llmkit.report.html import Html, element, join, said
from llmkit.report.plots import Mark, Spot
from llmkit.report.values import Part, finite, part

MOST_ROWS = 24  # variants that are drawn
_GROUPS = 20  # languages or sources


@dataclass(frozen=True)
class Metric:
    title: str
    meaning: str
    digits: int = 1


# Drawn with their intervals, in this order.
PLOTTED = {
    "rougeL": Metric("ROUGE-L", "longest common subsequence with the expected answer, mean F1; higher is better"),
    "chrf": Metric("chrF", "character n-grams shared with the expected answers; higher is better"),
    "bleu": Metric("BLEU-4", "n-grams shared with the expected answers, whole corpus; higher is better"),
    "rouge1": Metric("ROUGE-1", "words or characters shared with the expected answer, mean F1; higher is better"),
    "rouge2": Metric("ROUGE-2", "neighbouring pairs shared with the expected answer, mean F1; higher is better"),
    "f1": Metric("Token F1", "tokens shared with the expected answer, as SQuAD counts them; higher is better"),
    "exact_match": Metric("Exact match", "percent of answers that are the expected one; higher is better"),
}
# Told in a table. What is not known here is told under its own name.
_TOLD = {
    "bleu_13a": Metric("BLEU-4, 13a tokens", ""),
    "length_ratio": Metric("Length", "tokens of the answers for each of the expected ones", 2),
    "distinct1": Metric("Distinct-1", "percent of different tokens"),
    "distinct2": Metric("Distinct-2", "percent of different pairs"),
    "repetition": Metric("Repetition", "percent of n-grams said before in the same answer"),
    "refusals": Metric("Refusals", "percent of answers that only refuse"),
    "sensitive": Metric("Sensitive", "percent of answers with a listed word"),
    "stopped": Metric("Stopped", "percent of answers that ended by themselves"),
}


def drawn(report: Part) -> dict[str, Part]:
    return dict(list(values.rows(report).items())[:MOST_ROWS])


def intervals(report: Part) -> Html:
    rows = drawn(report)
    cards = [card for metric, known in PLOTTED.items() if (card := _card(metric, known, rows, str(report.get("reference"))))]
    if not cards:
        return Html()
    lead = (
        "The stroke is the 95 % bootstrap interval over samples: with other questions of the same kind the score would mostly "
        "fall inside. The grey band is the reference's. All variants answered the same questions, so two may differ for "
        "certain though their strokes overlap; the gate and llmkit compare test that sample by sample."
    )
    return join(
        [
            element("p", lead, class_="quiet"),
            element("p", *_legend({_kind(name, row, report) for name, row in rows.items()}), class_="legend"),
            element("div", *cards, class_="grid"),
            _others(rows),
        ]
    )


_KINDS = {
    "good": ("kept", "variant"),
    "reference": ("valid", "reference"),
    "lost": ("gone", "lost the fine-tune"),
    "other": ("", "before the fine-tune"),
}


def _legend(kinds: set[str]) -> Iterable[Html]:
    return [element("span", text, class_=f"dot {dot}") for kind, (dot, text) in _KINDS.items() if kind in kinds]


def _kind(name: str, row: Part, report: Part) -> str:
    if name == str(report.get("reference")):
        return "reference"
    if table.lost_fine_tune(name, row):
        return "lost"
    return "other" if name == table.BASE else "good"


def _mark(name: str, row: Part, metric: str, reference: str) -> Mark | None:
    score = finite(part(row, "metrics").get(metric))
    kind = _kind(name, row, {"reference": reference})
    return None if score is None else Mark(name, score, values.interval(row, metric), kind)


def _card(metric: str, known: Metric, rows: Mapping[str, Part], reference: str) -> Html:
    found = [_mark(name, row, metric, reference) for name, row in rows.items()]
    marks = [mark for mark in found if mark]
    if not any(mark.ends for mark in marks):
        return Html()
    label = f"{known.title}: " + "; ".join(map(_in_words, marks))
    heading = [element("h3", known.title), element("p", known.meaning, class_="quiet small")]
    return element("div", *heading, plots.intervals(marks, label=label), class_="card")


def _in_words(mark: Mark) -> str:
    """The dot and its stroke for who cannot see them."""
    ends = f" ({mark.ends[0]:.1f} to {mark.ends[1]:.1f})" if mark.ends else ""
    return f"{html.line(mark.name, 60)} {mark.value:.1f}{ends}"


def _others(rows: Mapping[str, Part]) -> Html:
    """A table of what is not drawn, metrics by variants."""
    shares = {
        name: {"stopped": 100 * stopped} for name, row in rows.items() if (stopped := finite(row.get("stopped"))) is not None
    }
    held = {name: {**part(row, "metrics"), **shares.get(name, {})} for name, row in rows.items()}
    plain = {metric for metric in PLOTTED if not any(values.interval(row, metric) for row in rows.values())}
    names = [*_TOLD, *sorted({str(metric) for row in held.values() for metric in row} - {*_TOLD, *PLOTTED} | plain)][:60]
    lines = [
        [_named(metric), *(_value(held[name].get(metric), row, metric) for name, row in rows.items())]
        for metric in names
        if any(values.number(row.get(metric)) is not None for row in held.values())
    ]
    if not lines:
        return Html()
    return element("div", html.table(["", *map(_name, rows)], lines, numbers=range(1, len(rows) + 1)), class_="others")


def _named(metric: str) -> Html:
    known = {**PLOTTED, **_TOLD}.get(metric)
    if known is None:
        return said(metric.replace("_", " "), most=60)
    return join([known.title, element("div", known.meaning, class_="quiet small")])


def _name(name: str) -> Html:
    return said(html.line(name, 60))


def _value(value: object, row: Part, metric: str) -> Html:
    digits = {**PLOTTED, **_TOLD}.get(metric, Metric("", "", 2)).digits
    return with_interval(table.spelled(value, digits), values.interval(row, metric), digits)


def with_interval(text: str, ends: tuple[float, float] | None, digits: int = 1) -> Html:
    """A number over its interval in small."""
    if not ends:
        return html.escape(text)
    return join([text, element("div", f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}", class_="ends")])


# --- quality against what it costs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    key: str
    title: str
    across: str
    unit: float
    cheap_is_right: bool


_COSTS = (
    _Cost("size_bytes", "Quality against size", "size on disk, MB", 1e6, False),
    _Cost("tokens_per_second", "Quality against speed", "tokens a second", 1.0, True),
)


def trade_offs(report: Part, refused: Iterable[str]) -> Html:
    """Pictures of what a better score costs; `refused` names what must not be shipped and so is on no front."""
    metric = recommend.quality(report)
    cards = [card for cost in _COSTS if metric and (card := _trade_off(report, cost, metric, {*refused}))]
    if not cards:
        return Html()
    lead = (
        "Filled dots are the Pareto front of what may be shipped: none is both better and cheaper by the measured numbers. "
        "The upright stroke is the 95 % interval: of two neighbours whose strokes overlap, the better one may be so by chance."
    )
    return join([element("p", lead, class_="quiet"), element("div", *cards, class_="grid")])


def _trade_off(report: Part, cost: _Cost, metric: str, refused: set[str]) -> Html:
    found = {}
    for name, row in drawn(report).items():
        mark, price = _mark(name, row, metric, str(report.get("reference"))), finite(row.get(cost.key))
        if mark and price is not None and price > 0:
            found[name] = mark, price / cost.unit
    if len(found) < 2:
        return Html()
    sign = -1 if cost.cheap_is_right else 1
    # The model before the fine-tune is there to compare with, not to be shipped.
    out = refused | {name for name, (mark, _) in found.items() if mark.kind == "other"}
    best = recommend.front({name: (sign * price, mark.value) for name, (mark, price) in found.items() if name not in out})
    spots = [Spot(mark, price, name in best) for name, (mark, price) in found.items()]
    title = recommend.title(metric)
    told = "; ".join(f"{_in_words(spot.mark)} at {spot.cost:.0f}{', on the front' if spot.front else ''}" for spot in spots)
    picture = plots.trade_off(
        spots,
        across=cost.across,
        up=title,
        cheap_is_right=cost.cheap_is_right,
        label=f"{cost.title}: {title} by {cost.across}: {told}",
    )
    better = "towards the upper right is better" if cost.cheap_is_right else "towards the upper left is better"
    return element(
        "div", element("h3", cost.title), element("p", f"{title}, {better}", class_="quiet small"), picture, class_="card"
    )


# --- distance from the reference --------------------------------------------------------------------------------------


def _with_error(value: object, error: object, digits: int) -> Html:
    shown, spread = table.spelled(value, digits), finite(error)
    return html.escape(shown if spread is None or shown == table.UNKNOWN else f"{shown} ± {spread:.{digits}f}")


def _share(value: object) -> str:
    found = finite(value)
    return table.UNKNOWN if found is None else f"{100 * found:.1f} %"


_DISTANCES: tuple[tuple[str, Callable[[Part, Part], object]], ...] = (
    ("perplexity", lambda row, _: table.spelled(row.get("perplexity"), 3)),
    ("ln PPL ratio", lambda _, kl: _with_error(kl.get("log_perplexity_ratio"), kl.get("log_perplexity_ratio_error"), 4)),
    ("KL mean", lambda row, kl: _with_error(kl.get("mean", row.get("kl")), kl.get("mean_error"), 4)),
    ("median", lambda _, kl: table.spelled(kl.get("median"), 4)),
    ("99th percentile", lambda _, kl: table.spelled(kl.get("p99"), 3)),
    ("same top token", lambda _, kl: _share(kl.get("same_top"))),
    ("RMS Δp", lambda _, kl: _share(kl.get("rms_dp"))),
    ("retention", lambda row, _: table.spelled(row.get("retention"), 3)),
    ("own answers", lambda row, _: table.spelled(row.get("log_probability"), 3)),
)


def distances(report: Part) -> Html:
    """Perplexity and KL, the columns as llama-perplexity has them."""
    rows = drawn(report)
    lines = {name: [cell(row, part(row, "divergence")) for _, cell in _DISTANCES] for name, row in rows.items()}
    filled = [place for place in range(len(_DISTANCES)) if any(line[place] != table.UNKNOWN for line in lines.values())]
    if not any(_DISTANCES[place][0] in ("perplexity", "KL mean") for place in filled):
        return Html()
    reference = said(report.get("reference") or "the reference", most=60)
    tokens = max((finite(part(row, "divergence").get("tokens")) or 0 for row in rows.values()), default=0)
    over = f" over {html.count(tokens)} tokens" if tokens else ""
    lead = join(
        [
            f"Measured on the expected answers of held-out dialogues{over}: perplexity, and how far each variant's "
            "distribution of the next token lies from that of ",
            reference,
            " (Kullback–Leibler divergence in nats; ± standard error). “Own answers” is the mean log-probability that the "
            "runtime gave the tokens it chose itself. Perplexities compare only under one tokenizer.",
        ]
    )
    headings = ["", *(_DISTANCES[place][0] for place in filled)]
    body = [[_row_label(name, rows[name]), *(lines[name][place] for place in filled)] for name in lines]
    return join([element("p", lead, class_="quiet"), html.table(headings, body, numbers=range(1, len(headings)))])


def _row_label(name: str, row: Part) -> Html:
    return element("span", _name(name), class_="bad" if table.lost_fine_tune(name, row) else None)


def variants(report: Part) -> Html:
    """The table of the terminal, with intervals."""
    rows = drawn(report)
    # The runtime stands under the name, where it takes no width.
    columns = [column for column in table.columns_of(rows) if column.heading != "runtime"]
    lines = []
    for name, row in rows.items():
        runtime = element("div", said(row["runtime"], most=60), class_="ends") if row.get("runtime") else Html()
        lost = "bad" if table.lost_fine_tune(name, row) else None
        cells = [with_interval(column.cell(row), values.interval(row, column.metric)) for column in columns]
        lines.append([join([element("b", said(table.label(name, row), most=60), class_=lost), runtime]), *cells])
    left = len(values.rows(report)) - len(rows)
    more = element("p", f"and {left} more, in report.json", class_="quiet small") if left > 0 else Html()
    return join([html.table(["", *(column.heading for column in columns)], lines, numbers=range(1, len(columns) + 1)), more])


# --- parts of the data ------------------------------------------------------------------------------------------------


def breakdown(report: Part) -> Html:
    metric = recommend.quality(report) or "rougeL"
    found = part(report, "breakdown")
    tables = [
        (str(name), drawn_groups) for name in list(found)[:6] if (drawn_groups := _groups(part(found, name), metric, report))
    ]
    if not tables:
        return Html()
    title = recommend.title(metric)
    lead = f"{title} of the questions of each kind; few questions, much noise."
    return join(
        [
            element("p", lead, class_="quiet"),
            *(join([element("h3", "By ", said(name, most=60)), drawn]) for name, drawn in tables),
        ]
    )


def _groups(groups: Part, metric: str, report: Part) -> Html:
    names = list(drawn(report))
    ranked = sorted(groups, key=lambda group: -(finite(part(groups, group).get("n_samples")) or 0))
    lines = []
    for group in ranked[:_GROUPS]:
        held = part(groups, group, "models")
        counted = table.spelled(part(groups, group).get("n_samples"), 0)
        lines.append([_name(str(group)), counted, *(table.spelled(part(held, name).get(metric), 1) for name in names)])
    more = element("p", f"and {len(ranked) - _GROUPS} more, in report.json", class_="quiet small")
    shown = html.table(["", "n", *map(_name, names)], lines, numbers=range(1, len(names) + 2)) if lines else Html()
    return join([shown, more]) if len(ranked) > _GROUPS else shown
