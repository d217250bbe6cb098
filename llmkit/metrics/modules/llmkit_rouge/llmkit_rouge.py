"""ROUGE-1/2/L for Chinese, English and mixed text as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitRouge(base.TextMetric):
    """Mean sentence F1; one token per Han, kana or Hangul character, else runs of letters and digits."""

    family = "rouge"
