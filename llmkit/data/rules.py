"""The rules of one cleaning, in order, as its config asks for them. Knows which rules there are; nothing of files or counts.

The order, which is that of the table, and why:

- Markup goes first and the other normalizers after it, so that every filter sees, and measures, what will be trained on.
- Then `tools` and `dialogue`: they cost least and drop most.
- Filters follow, cheap to dear. They see the words as said, before masks: `<PHONE>` five times is no repetition.
- Then come the rules that mask. A mask is never empty but may be longer than what it hides: `max_chars` holds for the text
  without masks.
- A user's own rules come last and see what all others leave. What they change is not judged again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.data import filters, language, markup, normalize, quality
from llmkit.data.filters import Rule

Spec = Mapping[str, Any]  # the config's fields as plain values
Rules = list[tuple[str, Rule]]


class _Row(NamedTuple):
    """A rule: its name, what it does, whether a config asks for it, and how it is made of one."""

    name: str
    about: str
    wanted: Callable[[Spec], bool]
    build: Callable[[Spec], Rule]


def _unless(key: str, off: str) -> Callable[[Spec], bool]:
    return lambda spec: spec.get(key, off) != off


def _given(key: str) -> Callable[[Spec], bool]:
    return lambda spec: spec.get(key) is not None


def _on(key: str) -> Callable[[Spec], bool]:
    return lambda spec: bool(spec.get(key))


def _always(spec: Spec) -> bool:
    return True


def _glossary(spec: Spec) -> Rule:
    from llmkit.data.glossary import glossary

    # Texts are simplified by then, so its variants must be found in that spelling too.
    return glossary(Path(spec["glossary"]), respell=normalize.simplified if spec.get("simplify") else None)


def _dialogue(spec: Spec) -> Rule:
    return filters.dialogue_filter(
        min_turns=spec["min_turns"],
        max_chars=spec["max_chars"],
        min_chars=spec.get("min_chars", 1),
        turn=spec.get("turn", "message"),
    )


def _languages(spec: Spec) -> Rule:
    return language.languages(spec["languages"], by=spec.get("language_by", "script"))


def _sensitive(spec: Spec) -> Rule:
    from llmkit.data.sensitive import sensitive

    respell = normalize.simplified if spec.get("simplify") else None
    return sensitive([Path(path) for path in spec["sensitive"]["words"]], action=spec["sensitive"]["action"], respell=respell)


def _personal(spec: Spec) -> Rule:
    from llmkit.data.personal import personal

    return personal(action=spec["personal"]["action"], kinds=spec["personal"]["kinds"])


_TABLE = (
    _Row(
        "markup",
        "HTML tags and entities, and Markdown links to the web, outside code",
        _unless("markup", "keep"),
        lambda spec: markup.markup(action=spec["markup"]),
    ),
    _Row(
        "unicode",
        "one spelling for what looks alike; Chinese punctuation stays",
        _on("unicode"),
        lambda spec: normalize.unicode_repair(),
    ),
    _Row(
        "whitespace",
        "no white space at the ends, one space in a row, one blank line",
        _on("whitespace"),
        lambda spec: normalize.whitespace(),
    ),
    _Row("simplify", "Traditional Chinese becomes Simplified", _on("simplify"), lambda spec: normalize.simplify()),
    _Row("glossary", "each variant of a term becomes the standard one", _on("glossary"), _glossary),
    _Row(
        "tools",
        "tool calls and what tools returned",
        _always,
        lambda spec: filters.tools(action=spec.get("tools", "reject")),
    ),
    _Row("dialogue", "user and assistant in turn, enough turns, no message empty, too short or too long", _always, _dialogue),
    _Row("language", "only the languages that stay", _on("languages"), _languages),
    _Row("refusals", "answers that are boilerplate refusals", _unless("refusals", "keep"), lambda spec: quality.refusals()),
    _Row(
        "special",
        "too large a share of special characters",
        _given("max_special"),
        lambda spec: quality.special(spec["max_special"]),
    ),
    _Row(
        "repetition",
        "too large a share of text that repeats",
        _given("max_repetition"),
        lambda spec: quality.repetition(spec["max_repetition"]),
    ),
    _Row("urls", "web addresses", _unless("urls", "keep"), lambda spec: markup.urls(action=spec["urls"])),
    _Row("sensitive", "words of the lists given", _on("sensitive"), _sensitive),
    _Row("personal", "e-mail, phone, ID card, bank card and IP address", _on("personal"), _personal),
)

RULES: Mapping[str, str] = {**{row.name: row.about for row in _TABLE}, "custom": "a rule of your own"}


def chain(spec: Spec) -> Rules:
    """The rules that `spec` asks for, with their names, in order; a user's own are named `custom:<file's name>`.

    Raises:
        LlmkitError: a file that a rule needs is missing or bad, or an extra is not installed.
    """
    rules = [(row.name, row.build(spec)) for row in _TABLE if row.wanted(spec)]
    return rules + list(_custom(spec.get("custom") or ()))


def names(spec: Spec) -> list[str]:
    """The names of `chain(spec)`, with nothing built: no list is read and no code of a user's is run."""
    return [*(row.name for row in _TABLE if row.wanted(spec)), *(_custom_name(path) for path in spec.get("custom") or ())]


def is_basic(spec: Spec) -> bool:
    """Whether nothing judges but the dialogue filter, with tool calls rejected and no minimum of characters but one.

    Then `{user, assistant in turn}`, enough turns and no text blank or too long is all there is to a record that passes.
    """
    on = {row.name for row in _TABLE if row.wanted(spec)}
    plain = spec.get("tools", "reject") == "reject" and spec.get("min_chars", 1) <= 1
    return on == {"tools", "dialogue"} and plain and not spec.get("custom")


def _custom(paths: Sequence[str]) -> Iterator[tuple[str, Rule]]:
    from llmkit.data import custom

    for path in paths:
        yield _custom_name(path), custom.load(Path(path))


def _custom_name(path: str) -> str:
    return f"custom:{Path(path).stem}"
