"""BLEU-4 and length ratio for Chinese, English and mixed text as an `evaluate` module. Knows the wrapper; computes nothing."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics.modules import base


class LlmkitBleu(base.TextMetric):
    """Corpus BLEU-4 as sacrebleu computes it with the `zh` tokenizer; 13a's too where no reference needs `zh`; length ratio."""

    family = "bleu"
