"""One training run as a page to show around: its curves, its facts, its answers over time. Knows the log's keys and draws
them; measures nothing anew, and reads no files.

Every text in it may come from the data and is escaped. A number that is missing or not finite is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, floor, fsum
from typing import NamedTuple

from llmkit.report import axes, html
from llmkit.report.axes import Axis
from llmkit.report.html import Html, count, element, join, percent, said
from llmkit.report.values import Part, finite

Point = tuple[float, float]

# On the page; log.jsonl and samples.jsonl have all.
_POINTS = 1000  # a line
_QUESTIONS = 24
_ANSWERS = 24  # a question
_MANY = 60  # steps from which on a smoothed line is drawn
_WINDOW = 40  # it averages so many parts of the run

# The picture, in units of its view box.
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 446, 12, 222
_LOG_SCALE = 50  # times the median: a peak over it would press all else flat


def page(history: Sequence[Part], samples: Sequence[Part], facts: Part) -> str:
    """The page: one HTML file that asks nothing of a network and runs no script.

    Args:
        history: lines of log.jsonl in any order: {"step", "loss", "learning_rate", "grad_norm", "tokens"} and perhaps
            "nll", "rewards_margin", "rewards_accuracy", "kl"; or {"step", "valid_loss"}. Losses in nats.
        samples: lines of samples.jsonl, {"step", "question", "answer"}, in the order they were written; perhaps none.
        facts: what `engine.train.train` returns; each may be missing.
    """
    best = finite(facts.get("best_step"))
    parts = [
        ("curves", "How it went", _curves(history, best)),
        ("facts", "What was trained, on what", _facts(facts)),
        ("answers", "What it answered as it learned", _answers(samples, best)),
    ]
    shown = [part for part in parts if part[2]]
    title = _title(facts)
    return html.page(
        f"Training report: {title}",
        _opening(facts, title),
        _warnings(history, facts),
        html.contents({anchor: heading for anchor, heading, _ in shown}),
        *(html.section(*part) for part in shown),
        element("footer", "Made by llmkit. The same numbers for machines: log.jsonl, samples.jsonl and manifest.json."),
    )


# --- the facts --------------------------------------------------------------------------------------------------------

_OBJECTIVES = {
    "sft": "supervised fine-tuning",
    "orpo": "odds ratio preference optimization",
    "dpo": "direct preference optimization",
    "kto": "Kahneman-Tversky optimization",
}
_METHODS = {"lora": "a LoRA adapter", "qlora": "a LoRA adapter over a 4-bit base", "full": "every weight"}
_PRECISIONS = {"bf16": "bf16: multiplied in bfloat16; what learns stays fp32", "fp32": "fp32"}
_LEFT_OUT = {"overlong": "too long", "forged": "spell special tokens"}
_CUT = {"truncated": "shortened at their beginning", "split": "cut into several"}


def _title(facts: Part) -> str:
    objective, method = str(facts.get("objective") or ""), str(facts.get("method") or "")
    words = ": ".join(part for part in (_OBJECTIVES.get(objective, objective), _METHODS.get(method, method)) if part)
    return (words[:1].upper() + words[1:] or "A training run")[:200]


def _opening(facts: Part, title: str) -> Html:
    steps, seconds = _spelled(facts, "steps"), _duration(facts.get("seconds"))
    tiles = [
        ("Held-out loss", "train", _before_and_after(facts), "before and after, in nats per token of the answers"),
        ("Records", "kept", _spelled(facts, "records"), f"learnt from, in {steps} steps"),
        ("Tokens a second", "after", _spelled(facts, "tokens_per_second"), f"over {seconds}"),
    ]
    cards = [
        element(
            "div", element("span", name, class_=f"dot {kind}"), element("b", value), element("p", meaning), class_="card tile"
        )
        for name, kind, value, meaning in tiles
    ]
    return element(
        "header",
        element("p", "Training report", class_="over"),
        element("h1", said(title, most=300)),
        element("div", *cards, class_="tiles"),
    )


def _warnings(history: Sequence[Part], facts: Part) -> Html:
    before, after = (finite(facts.get(f"valid_loss_{when}")) for when in ("before", "after"))
    records, lost = (finite(facts.get(key)) or 0 for key in ("records", "records_overlong"))
    bad = sum(finite(value) is None for line in history for key, value in line.items() if key in _LOGGED)
    found = []
    if before is not None and after is not None and after > before:
        found.append(f"the loss on held-out dialogues rose from {before:.3f} to {after:.3f}")
    if before is None or after is None:
        found.append("no loss on held-out dialogues: there were none, or it is no number")
    if lost > 0.1 * (records + lost):
        found.append(f"{percent(lost, records + lost)} of the records were left out as too long")
    if bad:
        found.append(f"{count(bad)} values of the log are no finite numbers and are not drawn")
    if not found:
        return Html()
    items = [element("li", text) for text in found]
    return element("aside", element("h2", "Worth a second look"), element("ul", *items), class_="warnings")


def _facts(facts: Part) -> Html:
    rows = [(name, spell(facts)) for name, spell in _ROWS]
    return html.table(["Fact", "Value"], [(name, value) for name, value in rows if value and value != html.UNKNOWN])


def _named(key: str, names: Mapping[str, str]) -> Callable[[Part], Html]:
    return lambda facts: said(names.get(str(facts.get(key)), facts.get(key) or ""), most=300)


def _counted(key: str, unit: str = "") -> Callable[[Part], str]:
    return lambda facts: _spelled(facts, key) + unit if finite(facts.get(key)) is not None else ""


def _counts(names: Mapping[str, str]) -> Callable[[Part], str]:
    def spell(facts: Part) -> str:
        amounts = [(finite(facts.get(f"records_{key}")), words) for key, words in names.items()]
        return "; ".join(f"{count(amount)} {words}" for amount, words in amounts if amount) or "none"

    return spell


def _before_and_after(facts: Part) -> str:
    values = [finite(facts.get(f"valid_loss_{when}")) for when in ("before", "after")]
    return " → ".join(html.UNKNOWN if value is None else f"{value:.3f}" for value in values)


def _footprint(facts: Part) -> str:
    micro_batch = _spelled(facts, "micro_batch")
    remade = "; activations made again in the backward pass" if facts.get("gradient_checkpointing") is True else ""
    return "" if micro_batch == html.UNKNOWN else f"{micro_batch} records{remade}"


_ROWS: tuple[tuple[str, Callable[[Part], str]], ...] = (
    ("Objective", lambda facts: said(facts.get("objective_details") or "")),
    ("Method", _named("method", _METHODS)),
    ("Weights that learn", _counted("trainable_parameters")),
    ("Chat template", _named("template", {})),
    ("End of an answer", lambda facts: element("code", said(facts["eos_token"], most=80)) if facts.get("eos_token") else ""),
    ("Records learnt from", _counted("records")),
    ("Records left out", _counts(_LEFT_OUT)),
    ("Records cut", _counts(_CUT)),
    ("Records a step", _counted("batch_size")),
    ("In memory at once, per process", _footprint),
    ("Processes", _counted("processes")),
    ("Precision", _named("precision", _PRECISIONS)),
    ("Steps", _counted("steps")),
    ("Step that was kept", _counted("best_step")),
    ("Tokens", _counted("tokens")),
    ("Time", lambda facts: _duration(facts.get("seconds"))),
    ("Speed", _counted("tokens_per_second", " tokens a second")),
    ("Training loss, mean of the last 10 steps", lambda facts: _short(facts.get("train_loss"))),
    ("Loss on held-out dialogues, before → after", _before_and_after),
)


def _spelled(facts: Part, key: str) -> str:
    value = finite(facts.get(key))
    return html.UNKNOWN if value is None else count(value)


def _short(value: object) -> str:
    number = finite(value)
    return html.UNKNOWN if number is None else _digits(number)


def _digits(value: float) -> str:
    """Four digits, as short as they go: 2e-5, 0.1234, 12,345."""
    if abs(value) >= 1000 and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def _duration(value: object) -> str:
    seconds = finite(value)
    if seconds is None or seconds < 0:
        return html.UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:,.0f} min {seconds % 60:.0f} s"


# --- the curves -------------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    """One key of the log as a line. `noisy`: many points of it are smoothed."""

    key: str
    name: str
    kind: str = "train"
    noisy: bool = True


class _Picture(NamedTuple):
    title: str
    meaning: str
    lines: tuple[_Line, ...]


_VALIDATION = _Line("valid_loss", "validation", kind="valid", noisy=False)
_PICTURES = (
    _Picture("Loss", "what training lowers, in nats", (_Line("loss", "training"), _VALIDATION)),
    _Picture("Likelihood term", "negative log-likelihood of the chosen answers, in nats", (_Line("nll", "training"),)),
    _Picture(
        "Reward margin",
        "how much more likely the better answer, times beta, in nats",
        (_Line("rewards_margin", "training"),),
    ),
    _Picture("Reward accuracy", "share of pairs in which the better answer leads", (_Line("rewards_accuracy", "training"),)),
    _Picture("Distance from the base", "KL estimate, in nats", (_Line("kl", "training"),)),
    _Picture("Learning rate", "warm-up, then its schedule", (_Line("learning_rate", "learning rate", noisy=False),)),
    _Picture("Gradient norm", "before it is clipped", (_Line("grad_norm", "training"),)),
)
_LOGGED = {line.key for picture in _PICTURES for line in picture.lines}
_COLOURS = {"train": "var(--kept)", "valid": "var(--held)"}
# In each element's own style: the page has one sheet for every report, and a picture copied out of it keeps its look.
_TEXT = "fill:var(--quiet);font-size:12px"
_GRID = "stroke:var(--line);fill:none"


def _curves(history: Sequence[Part], best: float | None) -> Html:
    drawn = [_card(picture, {line: _points(history, line.key) for line in picture.lines}, best) for picture in _PICTURES]
    cards = [card for card in drawn if card]
    lead = f"Of so many steps {count(_POINTS)} points a line are drawn, the highest and the lowest of each stretch among them."
    long = element("p", lead, class_="quiet") if len(history) > _POINTS else Html()
    return join([long, element("div", *cards, class_="grid")]) if cards else Html()


def _points(history: Sequence[Part], key: str) -> list[Point]:
    found = [(finite(line.get("step")), finite(line.get(key))) for line in history if key in line]
    return sorted((step, value) for step, value in found if step is not None and value is not None)


def _card(picture: _Picture, found: Mapping[_Line, list[Point]], best: float | None) -> Html:
    lines = {line: points for line, points in found.items() if points}
    if not lines:
        return Html()
    told = "; ".join(_told(line, points) for line, points in lines.items())
    return element(
        "div",
        element("h3", picture.title),
        element("p", picture.meaning, class_="quiet small"),
        _draw(lines, best if _VALIDATION in picture.lines else None, label=f"{picture.title}: {told}"),
        element("p", *_legend(lines), class_="legend"),
        element("p", told, class_="quiet small"),
        class_="card",
    )


def _told(line: _Line, points: list[Point]) -> str:
    """The line in words, for who cannot see it."""
    if len(points) == 1:
        return f"{line.name} {_digits(points[0][1])} at step {count(points[0][0])}"
    lowest, highest = min(points, key=_value), max(points, key=_value)
    least, most = (f"{_digits(value)} at step {count(step)}" for step, value in (lowest, highest))
    first, last = (_digits((_smoothed(points) if _is_smoothed(line, points) else points)[end][1]) for end in (0, -1))
    return f"{line.name} from {first} to {last}, lowest {least}, highest {most}"


def _legend(lines: Mapping[_Line, list[Point]]) -> Iterable[Html]:
    for line, points in lines.items():
        smoothed = _is_smoothed(line, points)
        yield element("span", f"{line.name}, smoothed" if smoothed else line.name, class_=f"dot {line.kind}")
        if smoothed:
            yield element("span", "single steps", class_="dot")


def _is_smoothed(line: _Line, points: Sequence[Point]) -> bool:
    return line.noisy and len(points) >= _MANY


def _draw(lines: Mapping[_Line, list[Point]], best: float | None, *, label: str) -> Html:
    """The picture as SVG that is also well-formed XML: https://www.w3.org/TR/SVG2/."""
    across = _steps_axis([step for points in lines.values() for step, _ in points])
    up = _values_axis([value for points in lines.values() for _, value in points])
    drawn = [shape for line, points in lines.items() for shape in _shapes(line, points, across, up)]
    return element(
        "svg",
        _frame(across, up),
        *drawn,
        _mark(best, dict(lines.get(_VALIDATION, ())), across, up),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=label,
        style="display:block;width:100%;height:auto",
    )


def _shapes(line: _Line, points: list[Point], across: Axis, up: Axis) -> Iterable[Html]:
    def place(step: float, value: float) -> tuple[str, str]:
        return f"{across.place(step):.1f}", f"{up.place(value):.1f}"

    colour, smoothed = _COLOURS[line.kind], _is_smoothed(line, points)
    if smoothed or len(points) < _MANY:
        # Strokes of no length with round ends are dots, in a quarter of the circles' bytes.
        faint = f"stroke:var(--before);stroke-width:{2 if len(points) <= _POINTS else 1}"
        style = faint if smoothed else f"stroke:{colour};stroke-width:4.5"
        strokes = [(place(*low), place(*high)) for low, high in _extremes(points)]
        dots = "".join(f"M{x} {y}V{top}" for (x, y), (_, top) in strokes)
        yield element("path", d=dots, class_="dots", style=f"fill:none;stroke-linecap:round;{style}")
    drawn = _smoothed(points) if smoothed else _thinned(points)
    path = " ".join(",".join(place(step, value)) for step, value in drawn)
    yield element("polyline", points=path, class_=line.key, style=f"fill:none;stroke:{colour};stroke-width:1.8")


def _extremes(points: list[Point]) -> Iterable[tuple[Point, Point]]:
    """The lowest and the highest point of each stretch of the run: one and the same where there are few."""
    for part in _stretches(points, _POINTS if len(points) <= _POINTS else _POINTS // 2):
        yield min(part, key=_value), max(part, key=_value)


def _thinned(points: list[Point]) -> list[Point]:
    """At most `_POINTS` of them, no peak lost."""
    return points if len(points) <= _POINTS else [point for pair in _extremes(points) for point in sorted(pair)]


def _value(point: Point) -> float:
    return point[1]


def _stretches(points: list[Point], most: int) -> Iterable[list[Point]]:
    most = min(most, len(points))
    return (points[len(points) * number // most : len(points) * (number + 1) // most] for number in range(most))


def _smoothed(points: list[Point]) -> list[Point]:
    """A moving mean, centred so that it does not lag; where the run begins and ends it has less to average."""
    reach, values = max(2, len(points) // _WINDOW // 2), [value for _, value in points]
    places = range(len(points)) if len(points) <= _POINTS else [len(points) * n // (_POINTS - 1) for n in range(_POINTS - 1)]
    means = []
    for place in dict.fromkeys([*places, len(points) - 1]):
        part = values[max(0, place - reach) : place + reach + 1]
        means.append((points[place][0], fsum(part) / len(part)))
    return means


def _mark(best: float | None, measured: Mapping[float, float], across: Axis, up: Axis) -> Html:
    """The step whose weights were kept."""
    if best is None or not across.low <= best <= across.high:
        return Html()
    x = across.place(best)
    left = x > (_LEFT + _RIGHT) / 2
    style = "stroke:var(--gone);stroke-dasharray:3 3"
    shapes = [element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=_TOP, y2=_BOTTOM, style=style)]
    if best in measured:
        ring = "fill:none;stroke:var(--gone);stroke-width:2"
        shapes.append(element("circle", cx=f"{x:.1f}", cy=f"{up.place(measured[best]):.1f}", r=6, style=ring))
    where = {"x": f"{x + (-6 if left else 6):.1f}", "y": _TOP + 13, "text_anchor": "end" if left else "start"}
    shapes.append(element("text", f"kept: step {count(best)}", style=_TEXT, **where))
    return element("g", *shapes, class_="best")


def _frame(across: Axis, up: Axis) -> Html:
    size = {"width": _RIGHT - _LEFT, "height": _BOTTOM - _TOP}
    shapes = [element("rect", x=_LEFT, y=_TOP, **size, class_="frame", style=_GRID)]
    for value, text in up.ticks.items():
        y = f"{up.place(value):.1f}"
        shapes.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, style=_GRID))
        shapes.append(element("text", text, x=_LEFT - 6, y=f"{up.place(value) + 4:.1f}", text_anchor="end", style=_TEXT))
    for value, text in across.ticks.items():
        at = across.place(value)
        anchor = "start" if at < _LEFT + 20 else "end" if at > _RIGHT - 20 else "middle"  # never beyond the picture
        shapes.append(element("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=_BOTTOM, y2=_BOTTOM + 4, style=_GRID))
        shapes.append(element("text", text, x=f"{at:.1f}", y=_BOTTOM + 17, text_anchor=anchor, style=_TEXT))
    shapes.append(element("text", "step", x=_LEFT - 6, y=_BOTTOM + 17, text_anchor="end", style=_TEXT))
    return element("g", *shapes, class_="axes")


# --- the axes ---------------------------------------------------------------------------------------------------------


def _steps_axis(steps: Sequence[float]) -> Axis:
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - max(1.0, 1e-6 * abs(low)), high + max(1.0, 1e-6 * abs(high))
    apart = max(1.0, axes.round_step(high - low, parts=5))
    ticks = [apart * n for n in range(ceil(low / apart), floor(high / apart) + 1)]
    return Axis(low, high, _LEFT, _RIGHT, {at: count(at) if abs(at) < 1e6 else _digits(at) for at in ticks})


def _values_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high > _LOG_SCALE * sorted(values)[len(values) // 2]:
        return axes.powers(low, high, _BOTTOM, _TOP)
    return axes.linear(values, _BOTTOM, _TOP, parts=4)


# --- the answers ------------------------------------------------------------------------------------------------------


def _answers(samples: Sequence[Part], best: float | None) -> Html:
    asked: dict[str, list[Part]] = {}
    for line in samples:
        asked.setdefault(str(line.get("question", "")), []).append(line)
    if not asked:
        return Html()
    cards = [_asked(question, lines, best) for question, lines in list(asked.items())[:_QUESTIONS]]
    left = len(asked) - _QUESTIONS
    more = element("p", f"and {count(left)} more questions, in samples.jsonl", class_="quiet small") if left > 0 else Html()
    lead = "The same held-out questions, asked again at each checkpoint. Long answers are cut."
    return join([element("p", lead, class_="quiet"), *cards, more])


def _asked(question: str, lines: Sequence[Part], best: float | None) -> Html:
    shown = _evenly(lines, _ANSWERS)
    items = [
        element("li", element("div", _when(line.get("step"), best), class_="meta"), said(line.get("answer", ""), block=True))
        for line in shown
    ]
    left = len(lines) - len(shown)
    more = element("p", f"{count(left)} answers between them are in samples.jsonl", class_="small") if left else Html()
    return element(
        "article", element("h3", said(question, block=True)), element("ul", *items, class_="examples"), more, class_="card rule"
    )


def _evenly(lines: Sequence[Part], most: int) -> Sequence[Part]:
    """At most `most` of them, the first and the last included."""
    if len(lines) <= most:
        return lines
    return [lines[(len(lines) - 1) * number // (most - 1)] for number in range(most)]


def _when(step: object, best: float | None) -> Html:
    number = finite(step)
    if number is None:
        return element("span", "at an unknown step")
    if number == 0:
        return element("span", "before training")
    kept = element("span", "these weights were kept") if number == best else Html()
    return join([element("span", f"step {count(number)}"), kept])
