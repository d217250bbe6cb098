"""Token F1 as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitF1(base.TextMetric):
    """Mean F1 of tokens as SQuAD counts it: ROUGE-1 without English articles."""

    family = "f1"
