"""Exact match as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitExactMatch(base.TextMetric):
    """The share of predictions that equal their reference but for case, punctuation and white space."""

    family = "exact_match"
