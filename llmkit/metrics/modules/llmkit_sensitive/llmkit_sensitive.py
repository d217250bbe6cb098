"""The rate of sensitive words as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextShare`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitSensitive(base.TextShare):
    """The share of predictions that hold a listed word, by the test given as `is_sensitive` to `evaluate.load`."""

    family = "sensitive"
    test = "is_sensitive"
