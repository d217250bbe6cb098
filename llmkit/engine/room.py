"""How many prompts a model can answer at once in the memory that is free. Knows a model's shape; nothing of texts.

An estimate, and a generous one: where it was too bold, `generate` halves the batch and goes on.
"""

from typing import Any

from llmkit.engine import loading
from llmkit.errors import LlmkitError

SHARE = 0.5  # of what is free: others take memory too, and an allocator leaves holes
# Beyond these a step costs in proportion to its rows, and a kill loses more of the work.
MOST = {"cpu": 32, "cuda": 256}
# Vocabulary-wide float32 rows alive at once: the logits, their copy in float32, and what one operation on them makes.
LOGITS = 4


def rows(model: Any, *, prompt: int, new: int, beams: int = 1) -> int:
    """A power of two, at least 1: rows of `prompt` tokens that grow by `new`, each of `beams` hypotheses."""
    fitting = int(loading.free_memory() * SHARE) // (beams * row_bytes(model, prompt=prompt, new=new))
    return 1 << (max(1, min(fitting, MOST.get(model.device.type, MOST["cuda"]))).bit_length() - 1)


def row_bytes(model: Any, *, prompt: int, new: int) -> int:
    """Memory in bytes that one row takes beside the weights: keys and values, the prompt's activations, and logits."""
    config = model.config.get_text_config()
    hidden, heads, layers = (_number(config, name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head = _number(config, "head_dim", hidden // heads)
    cached = 2 * layers * _number(config, "num_key_value_heads", heads) * head
    # One layer at a time; how often each width is alive at once was measured (Llama and Gemma 3, float32, CPU).
    passing = 6 * hidden + 4 * heads * head + 3 * _number(config, "intermediate_size", 4 * hidden)
    masks = 4 * prompt * prompt  # one layer's attention mask
    floats = cached * (prompt + new) + passing * prompt
    return floats * model.dtype.itemsize + masks + 4 * LOGITS * _number(config, "vocab_size")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, on whatever device, says that memory ran out."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _number(config: Any, name: str, default: int | None = None) -> int:
    """A config may lack it, or hold None; lists (a size for each layer) count as their largest."""
    found = getattr(config, name, None)
    if isinstance(found, (list, tuple)) and found:
        found = max(found)
    if isinstance(found, int) and found > 0:
        return found
    if default is None:
        raise LlmkitError(f"config.json has no {name}", code="LK0306")
    return default
