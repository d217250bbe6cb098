"""What the three `evaluate` modules share: the features and the description. Knows `evaluate`; computes nothing."""

import datasets  # noqa: TID253 - this package exists to be loaded by evaluate, and by nothing else
import evaluate  # noqa: TID253 - as above

INPUTS = """
Args:
    predictions: list of strings, one per sample; an empty one scores 0.
    references: list of strings, one per sample, none of them empty.
Returns:
    a dict of scores, 0-100.
"""


class TextMetric(evaluate.Metric):
    """One prediction and one reference a sample, both strings. Subclasses give `_compute`; their docstring describes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )
