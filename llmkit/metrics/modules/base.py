"""What the `evaluate` modules share: features, description and the way to the numbers. Knows `evaluate`; `text` computes."""

from collections.abc import Callable
from typing import Any, ClassVar

import datasets  # noqa: TID253 - this package exists to be loaded by evaluate, and by nothing else
import evaluate  # noqa: TID253 - as above

from llmkit.errors import UsageError
from llmkit.metrics import text

INPUTS = """
Args:
    predictions: list of strings, one per sample; an empty one scores 0.
    references: list of strings, one per sample, none of them empty.
Returns:
    a dict of scores, 0-100 (length_ratio: a ratio).
"""


class TextMetric(evaluate.Metric):
    """One prediction and one reference a sample, both strings. A subclass names a family of `text.FAMILIES`."""

    family: ClassVar[str] = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {one.name: one.score for one in text.FAMILIES[self.family](text.Pairs(predictions, references))}


class TextShare(TextMetric):
    """The share of predictions of which a test is true; the test is given to `evaluate.load` under the name in `test`."""

    test: ClassVar[str] = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        says: Callable[[str], bool] | None = options.pop(self.test, None)
        super().__init__(*args, **options)
        if says is None:
            raise UsageError(
                f"{self.name} needs a test", code="LK0710", next=f"evaluate.load(path, {self.test}=lambda text: …)"
            )
        self._says = says

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        text.check_pairs(predictions, references)
        return {self.family: text.share(self.family, predictions, self._says).score}
