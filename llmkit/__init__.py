"""llmkit: dialogues in, a tested, quantized chat model out."""

__version__ = "0.1.0"
