"""What is read of config.json, as transformers 4 or 5 writes it. Knows no family; refusals name the key at fault."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from llmkit.errors import DataError, UsageError

Value = int | float | str | bool
Metadata = dict[str, Value]
_LARGEST = 2**31 - 1


class ModelConfig(BaseModel, frozen=True, extra="ignore"):
    """The keys that decide what a model computes; the rest of the file is ignored."""

    architectures: tuple[str, ...] = Field(min_length=1)
    hidden_size: int = Field(gt=0, le=_LARGEST)
    intermediate_size: int = Field(gt=0, le=_LARGEST)
    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_attention_heads: int = Field(gt=0, le=_LARGEST)
    num_key_value_heads: int = Field(gt=0, le=_LARGEST)
    head_dim: int = Field(gt=0, le=_LARGEST)
    vocab_size: int = Field(gt=0, le=_LARGEST)
    max_position_embeddings: int = Field(gt=0, le=_LARGEST)
    original_max_position_embeddings: int | None = Field(None, gt=0, le=_LARGEST)
    rms_norm_eps: float = Field(gt=0, lt=1)
    hidden_act: str = ""
    hidden_activation: str | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = Field(None, gt=0, lt=1e30)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    sliding_window: int | None = Field(None, ge=0, le=_LARGEST)
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    sliding_window_pattern: int | None = None
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = Field(None, ge=0, lt=1e30)
    final_logit_softcapping: float | None = Field(None, ge=0, lt=1e30)
    use_bidirectional_attention: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        """Old files leave out what follows from the head count."""
        if not isinstance(raw, dict):
            return raw
        heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
        filled = {key: value for key, value in raw.items() if value is not None}
        filled.setdefault("num_key_value_heads", heads)
        if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
            filled.setdefault("head_dim", hidden // heads)
        return filled

    def rope(self, layers: str = "full_attention") -> dict[str, Any]:
        """The rotary settings of one kind of layer: {"rope_type", "rope_theta", …}, wherever this file keeps them."""
        settings = self.rope_parameters or self.rope_scaling or {}
        nested = settings.get(layers)
        chosen: dict[str, Any] = dict(nested) if isinstance(nested, dict) else dict(settings)
        chosen.setdefault("rope_type", chosen.get("type", "default"))
        for key in ("rope_theta", "partial_rotary_factor"):
            value = getattr(self, key)
            if value is not None:
                chosen.setdefault(key, value)
        return chosen


def demand(holds: bool, what: str, why: str) -> None:
    """Raises UsageError unless `holds`: llama.cpp would compute something else than this config.json says."""
    if not holds:
        raise UsageError(f"cannot export this model to GGUF: {what} of its config.json", code="LK0603", next=why)


def number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number of the rotary settings.

    Raises:
        DataError: it is missing, without a default, or not a positive number.
    """
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise DataError(f"config.json: rope settings: {key} must be a positive number, not {value!r}", code="LK0604")
    return float(value)
