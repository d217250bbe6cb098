"""chrF as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitChrf(base.TextMetric):
    """Corpus chrF as sacrebleu computes it by default."""

    family = "chrf"
