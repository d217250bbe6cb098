"""chrF as an `evaluate` module. Knows the wrapper; the number is `text.chrf`'s."""

# Not `import TextMetric`: evaluate loads the first metric class it finds among this file's names.
from llmkit.metrics import text
from llmkit.metrics.modules import base


class LlmkitChrf(base.TextMetric):
    """Corpus chrF as sacrebleu computes it by default."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": text.chrf(predictions, references)[0]}
