"""distinct-1, distinct-2 and repetition as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitVariety(base.TextMetric):
    """Different n-grams of all predictions over their tokens; the share of a prediction's 4-grams that stood in it before."""

    family = "variety"
