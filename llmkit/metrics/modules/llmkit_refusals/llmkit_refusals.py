"""The rate of refusals as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextShare`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitRefusals(base.TextShare):
    """The share of predictions that refuse, by the test given as `is_refusal` to `evaluate.load`."""

    family = "refusals"
    test = "is_refusal"
