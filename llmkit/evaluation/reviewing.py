"""A blind review of two variants: the page that asks, and what raters said. Knows answers; draws and counts nothing."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import UsageError
from llmkit.evaluation.questions import Question
from llmkit.evaluation.settings import Review


class Reviewing:
    """Some of the questions with two variants' answers, arranged so that nobody sees which is whose.

    Raises:
        UsageError: a variant that was not measured.
    """

    def __init__(self, settings: Review, questions: Sequence[Question], texts: Mapping[str, Sequence[str]]) -> None:
        from llmkit.metrics import ratings

        check(settings, list(texts))
        first, second = (texts[name] for name in settings.models)
        places = list(range(len(questions)))
        chosen = sorted(random.Random(settings.seed).sample(places, min(settings.samples, len(places))))  # noqa: S311 - no secret
        self._models = settings.models
        self._seed = settings.seed
        # A dialogue may stand twice in the data; an item must not.
        self._prompts = {f"{index}-{questions[index].id}": questions[index].prompt for index in chosen}
        answers = {item: (first[index], second[index]) for item, index in zip(self._prompts, chosen, strict=True)}
        self._review = ratings.arrange(answers, seed=settings.seed)

    def page(self) -> str:
        """One self-contained HTML file."""
        from llmkit.report import review

        pairs = [
            {"item": item, "prompt": self._prompts[item], "left": left, "right": right}
            for item, (left, right) in self._review.shown.items()
        ]
        return review.page(pairs, title="llmkit: which answer is better?", review=self._review.id)

    def rated(self, files: Sequence[Path]) -> dict[str, Any]:
        """The first model's win rate and the raters' agreement.

        Raises:
            DataError: a file that is no rating of this very page.
        """
        from llmkit.metrics import ratings

        found = [ratings.read(path, self._review) for path in files]
        return {"models": list(self._models), **ratings.win_rates(found, self._review, seed=self._seed)}


def check(settings: Review, rows: Sequence[str]) -> None:
    """Refuse a review of what is not measured."""
    unknown = [name for name in settings.models if name not in rows]
    if unknown or len(set(settings.models)) < 2:
        raise UsageError(
            f"eval.review.models names {unknown[0]!r}, which is not measured"
            if unknown
            else "eval.review.models names one model twice",
            code="LK0720",
            next=f"choose two of {', '.join(rows)}",
        )
