"""A glossary: every variant of a term becomes the standard one. Knows CSV and where words end.

A variant whose edge is a letter or a digit of a script that puts spaces between words matches whole words only; beside
Han, kana or Hangul nothing is needed: `wechat` is found in 用wechat登录, not in `wechats`. A variant in lower case matches
any case, one with a capital only itself. Of variants that overlap the first, then the longest, wins. Where the text already
says the standard term it stays, though a variant be part of it. Of what a replacement makes with its neighbours nothing is
looked up again.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llmkit.data.filters import Rule
from llmkit.data.normalize import normalizer
from llmkit.errors import DataError

_FIRST_UNSPACED = "\u2e80"  # from here on scripts put no space between words, or glue particles to them
_PIECE = 65_536  # characters
_HEADER = ("variant", "standard")


def glossary(path: Path, *, respell: Callable[[str], str] | None = None) -> Rule:
    """A rule that replaces the variants of a CSV file of `variant,standard` lines, UTF-8, the header optional.

    Each variant counts in the spelling that `respell` gives it too.

    Raises:
        DataError: the file cannot be read, a line is not such a pair, a variant has two standards or is itself a standard.
    """
    import ahocorasick_rs

    table = _read(path)
    _extend(table, respell)
    spelled: dict[str, list[str]] = {}
    for variant in table:
        spelled.setdefault(_lower(variant), []).append(variant)
    keys = list(spelled)
    longest = max(map(len, keys))
    automaton = ahocorasick_rs.AhoCorasick(keys, store_patterns=False)

    def matches(lower: str) -> Iterator[tuple[int, int, int]]:
        """(start, end, key), by start and the longest first; found piece by piece, for a match takes a hundred bytes."""
        for begin in range(0, len(lower), _PIECE):
            piece = lower[begin : begin + _PIECE + longest - 1] if len(lower) > _PIECE else lower
            found = automaton.find_matches_as_indexes(piece, overlapping=True)
            if found:
                yield from sorted(
                    ((begin + start, begin + end, key) for key, start, end in found if start < _PIECE),
                    key=lambda match: (match[0], -match[1]),
                )

    def replace(text: str) -> str:
        parts: list[str] = []
        done = 0
        for start, end, key in matches(_lower(text)):
            if start >= done and _whole(text, start, end):
                standard = _standard(text[start:end], spelled[keys[key]], table)
                if standard is not None:
                    parts += (text[done:start], standard)
                    done = end
        return "".join((*parts, text[done:])) if done else text

    return normalizer("glossary", replace)


def _extend(table: dict[str, str], respell: Callable[[str], str] | None) -> None:
    """Add each variant's other spelling, unless that is a standard term; and each standard term as its own."""
    standards = list(table.values())
    for variant, standard in list(table.items()):
        if respell and (other := respell(variant)) not in standards:
            table.setdefault(other, standard)
    # Found first, they keep a variant inside them from being replaced.
    for standard in standards:
        table.setdefault(standard, standard)


def _standard(said: str, variants: list[str], table: Mapping[str, str]) -> str | None:
    """What to write for `said`, whose lower case is that of `variants`; None where none of them means it."""
    if said in table:
        return table[said]
    return next((table[variant] for variant in variants if variant == _lower(variant)), None)


def _whole(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] cuts no word in two."""
    left = start > 0 and _spaced(text[start]) and _spaced(text[start - 1])
    right = end < len(text) and _spaced(text[end - 1]) and _spaced(text[end])
    return not left and not right


def _spaced(character: str) -> bool:
    return character < _FIRST_UNSPACED and (character.isalnum() or character == "_")


def _lower(text: str) -> str:
    """Lower case of the same length: the few capitals whose lower case is longer stay."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join([one.lower() if len(one.lower()) == 1 else one for one in text])


def _read(path: Path) -> dict[str, str]:
    table: dict[str, str] = {}
    for line, (variant, standard) in _pairs(path):
        if table.setdefault(variant, standard) != standard:
            raise _bad(path, line, f"{variant!r} already stands for {table[variant]!r}")
    for variant, standard in table.items():
        if table.get(standard, standard) != standard:
            raise _bad(path, 0, f"{standard!r} is the standard of {variant!r}, and a variant of {table[standard]!r}")
    table = {variant: standard for variant, standard in table.items() if variant != standard}
    if not table:
        raise _bad(path, 0, "no term in this glossary")
    return table


def _pairs(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            for row in rows:
                cells = tuple(cell.strip() for cell in row)
                if not any(cells) or (rows.line_num == 1 and cells == _HEADER):
                    continue
                if len(cells) != 2 or not all(cells):
                    raise _bad(path, rows.line_num, "not a pair of variant and standard term")
                if "\0" in cells[0] + cells[1]:
                    raise _bad(path, rows.line_num, "a NUL character")
                yield rows.line_num, cells
    except OSError as error:
        raise DataError(
            f"cannot read the glossary: {error.strerror}", code="LK0113", where=str(path), next="mend clean.glossary"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the glossary is no UTF-8 CSV: {error}", code="LK0202", where=str(path), next="save it as CSV in UTF-8"
        ) from None


def _bad(path: Path, line: int, what: str) -> DataError:
    return DataError(
        what, code="LK0213", where=f"{path}:{line}" if line else str(path), next="a glossary line is `variant,standard`"
    )
