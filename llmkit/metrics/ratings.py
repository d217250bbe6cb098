"""Blind A/B ratings: who stands on which side, what a rater's file may say, and who wins. Knows no page and no model's name.

Whoever makes the page and reads its files calls `arrange` with the same answers and seed both times: a file names the
arrangement it was made with, so it cannot be read against another.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.errors import DataError
from llmkit.metrics import bootstrap
from llmkit.metrics.tally import Tally, ratio

FORMAT = "llmkit-review-1"
CHOICES = ("left", "right", "tie", "bad")
_LARGEST_FILE = 16_000_000  # bytes; ten thousand ratings with a note each are under two million
_LONGEST_NAME = 200
_LONGEST_STAY = 1e9  # seconds on one item
_WORTH = {"win": 1.0, "tie": 0.5, "bad": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Review:
    """Pairs of answers as they are shown.

    `shown`: item → (left, right), in the order of the page; `first_left`: the items whose left answer is the first model's;
    `identical`: items with one text twice, shown to nobody; `id`: names exactly this arrangement of these texts.
    """

    id: str
    shown: Mapping[str, tuple[str, str]]
    first_left: frozenset[str]
    identical: frozenset[str]


@dataclass(frozen=True)
class Ratings:
    """One rater's file. `choices`: item → one of `CHOICES`; an item that was not rated is absent."""

    rater: str
    choices: Mapping[str, str]


def arrange(answers: Mapping[str, tuple[str, str]], *, seed: int) -> Review:
    """Shuffle sides and order of `answers`, item → (the first model's, the second's); each stands left half of the time.

    The same answers and seed give the same review on any machine. Order is shuffled as well, so that the part that an
    impatient rater leaves out is a random one.
    """
    differing = [item for item, (first, second) in answers.items() if first != second]
    left = frozenset(_shuffled(differing, f"side {seed}")[: len(differing) // 2])
    order = _shuffled(differing, f"order {seed}")
    shown = {item: answers[item] if item in left else (answers[item][1], answers[item][0]) for item in order}
    said = json.dumps([FORMAT, [[item, *pair] for item, pair in shown.items()]]).encode()
    return Review(sha256(said).hexdigest()[:32], shown, left, frozenset(answers) - frozenset(differing))


def _shuffled(items: Iterable[str], salt: str) -> list[str]:
    # By hash, not by `random`, whose shuffle may differ from one Python to the next.
    return sorted(items, key=lambda item: (sha256(json.dumps([salt, item]).encode()).digest(), item))


def read(path: Path, review: Review) -> Ratings:
    """What the page of `review` exported: {"format", "review", "rater", "ratings": [{"item", "choice", "seconds"}]}.

    Raises:
        DataError: the file is missing, not such an object, of another review, or names an item twice or an unknown one.
    """
    found = _object(path)
    if found.get("format") != FORMAT:
        raise _refused(path, f'no ratings: its "format" is not "{FORMAT}"')
    if found.get("review") != review.id:
        raise DataError(
            "these ratings are of other answers, or of another shuffle of them",
            code="LK0719",
            where=str(path),
            next="rate the page that was made with this evaluation, with the same models and seed",
        )
    rater, entries = found.get("rater", ""), found.get("ratings")
    if not isinstance(rater, str) or len(rater) > _LONGEST_NAME:
        raise _refused(path, f'"rater" is not a text of at most {_LONGEST_NAME} characters')
    if not isinstance(entries, list):
        raise _refused(path, '"ratings" is not a list')
    choices: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        item, choice = _rating(path, number, entry)
        if item not in review.shown:
            raise _refused(path, f"rating {number} is of an item that the review does not have")
        if item in choices:
            raise _refused(path, f"rating {number} rates an item a second time")
        choices[item] = choice
    return Ratings(" ".join(rater.split()), choices)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise DataError(
                "no such file", code="LK0113", where=str(path), next="name the ratings.json that the review page exported"
            )
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise _refused(path, f"longer than {_LARGEST_FILE:,} bytes")
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise _refused(path, "no JSON in UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", code="LK0113", where=str(path)) from None
    if not isinstance(found, dict):
        raise _refused(path, "no JSON object")
    return found


def _rating(path: Path, number: int, entry: object) -> tuple[str, str]:
    entry = entry if isinstance(entry, dict) else {}
    item, choice, seconds = entry.get("item"), entry.get("choice"), entry.get("seconds", 0)
    if not isinstance(item, str) or choice not in CHOICES:
        raise _refused(path, f'rating {number} is not {{"item", "choice"}} with one of {", ".join(CHOICES)}')
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_STAY:
        raise _refused(path, f'rating {number}: "seconds" is not a time')
    return item, str(choice)


def _refused(path: Path, why: str) -> DataError:
    return DataError(why, code="LK0719", where=str(path), next="export the ratings from the review page again")


def win_rates(files: Sequence[Ratings], review: Review, *, seed: int = 0) -> dict[str, Any]:
    """How often the first model's answers are preferred to the second's.

    Returns "wins", "losses", "ties", "bad" (both bad): ratings, all raters together; "items": how many were rated;
    "identical": items with equal answers, which count as ties; "win_rate" (0–1) with its 95 % bootstrap "interval" over
    items, ties and both bad counting half, raters of one item averaged; "raters"; "agreement": `krippendorff_alpha` of what
    they say. "win_rate" and "interval" are None where nothing was rated, "agreement" where no two raters can be compared.

    Raises:
        DataError: two files are of the same rater.
    """
    _check_raters(files)
    verdicts: dict[str, list[str]] = {}
    for one in files:
        for item, choice in one.choices.items():
            verdicts.setdefault(item, []).append(_verdict(choice, first_left=item in review.first_left))
    number = Counter(verdict for said in verdicts.values() for verdict in said)
    rate, interval = _rate(list(verdicts.values()), review, seed=seed) if verdicts else (None, None)
    return {
        **{"wins": number["win"], "losses": number["loss"], "ties": number["tie"], "bad": number["bad"]},
        **{"items": len(verdicts), "identical": len(review.identical), "win_rate": rate, "interval": interval},
        **{"raters": len(files), "agreement": krippendorff_alpha(verdicts.values())},
    }


def _check_raters(files: Sequence[Ratings]) -> None:
    for number, one in enumerate(files):
        if any(one.rater == other.rater and (one.rater or one.choices == other.choices) for other in files[:number]):
            whose = f"rater {one.rater!r}" if one.rater else "a rater without a name"
            raise DataError(
                f"two files hold the ratings of {whose}", code="LK0719", next="give each rater's file once, each with its name"
            )


def _verdict(choice: str, *, first_left: bool) -> str:
    if choice in ("tie", "bad"):
        return choice
    return "win" if (choice == "left") == first_left else "loss"


def _rate(verdicts: Sequence[Sequence[str]], review: Review, *, seed: int) -> tuple[float, list[float]]:
    values = [sum(map(_WORTH.__getitem__, said)) / len(said) for said in verdicts]
    # Where only some were rated, equal answers must not outweigh the ones that raters have not come to.
    equal = len(review.identical)
    weights = np.array([1.0] * len(values) + [len(values) / len(review.shown)] * equal)
    values += [_WORTH["tie"]] * equal
    tally = Tally("win_rate", np.column_stack([weights * values, weights]), ratio, unit="ratio")
    if len(set(values)) > 1:
        return tally.score, list(bootstrap.intervals([tally], seed=seed)["win_rate"])
    unseen = bootstrap.unseen(len(values))
    return values[0], [values[0] * (1 - unseen), values[0] * (1 - unseen) + unseen]


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Agreement beyond chance on nominal values: 1 is perfect, 0 is what chance gives, below 0 is worse than chance.

    `units`: the values that each unit was given, one a rater; units with fewer than two say nothing. None where no unit has
    two, or where all values are the same, which leaves nothing to agree on. Chosen over Fleiss' kappa because it allows
    each unit its own number of raters. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    pairable = [Counter(values) for values in units if len(values) > 1]
    totals = sum(pairable, Counter())
    everything = totals.total()
    expected = everything**2 - sum(number**2 for number in totals.values())
    if not expected:
        return None
    # Ordered pairs of unequal values within a unit, each unit weighing as much as it has values.
    observed = sum((unit.total() ** 2 - sum(n**2 for n in unit.values())) / (unit.total() - 1) for unit in pairable)
    return 1 - (everything - 1) * observed / expected
