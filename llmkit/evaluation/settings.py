"""What a recipe may say under `eval:`. Knows the schema; measures nothing."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT])?[bB]?")
_POWERS = {None: 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


class Gate(BaseModel):
    """What a variant must be to pass; `llmkit eval` exits with 1 where one is not, with 2 where that cannot be told."""

    model_config = STRICT
    baseline: str | None = Field(
        None, min_length=1, description="What drops are measured from: a row, such as merged, or an earlier report's folder."
    )
    max_drop: dict[str, float] = Field({}, description="By metric, the largest drop from the baseline, in points.")
    min: dict[str, float] = Field({}, description="By metric, the least value.")
    max: dict[str, float] = Field({}, description="By metric, the greatest value: perplexity, kl, repetition, …")
    max_size: str | None = Field(None, description="The largest file or folder, as 300MB.")
    min_tokens_per_second: float | None = Field(None, gt=0, description="The least speed, on this machine.")
    min_retention: float | None = Field(0.8, le=1, description="The least share of the fine-tune, where it is known.")
    variants: tuple[str, ...] | None = Field(
        None, min_length=1, description="The rows that are judged; None: all but base and the baseline."
    )

    @field_validator("max_size")
    @classmethod
    def _bytes(cls, size: str | None) -> str | None:
        if size is not None and not _SIZE.fullmatch(size):
            raise ValueError("give a size such as 300MB or 4GB")
        return size

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.max_drop and self.baseline is None:
            raise ValueError("max_drop needs a baseline: a row such as merged, or an earlier report's folder")
        if any(value < 0 for value in self.max_drop.values()):
            raise ValueError("max_drop is in points, and not negative")
        return self

    @property
    def max_bytes(self) -> int | None:
        found = _SIZE.fullmatch(self.max_size) if self.max_size else None
        return int(float(found[1]) * _POWERS[found[2] and found[2].upper()]) if found else None


class Endpoint(BaseModel):
    """A model behind an OpenAI-compatible API."""

    model_config = STRICT
    url: str = Field(pattern=r"^https?://", description="Its base URL, as http://localhost:8080/v1.")
    name: str = Field("endpoint", pattern=r"^[\w][\w.+-]{0,63}$", description="The name of its row.")
    model: str | None = Field(None, description="The model's name there; None: the first that it lists.")
    key_env: str | None = Field(None, pattern=r"^\w+$", description="The environment variable that holds its key.")
    timeout: float = Field(120, gt=0, le=86400, description="Seconds an answer may take.")
    retries: int = Field(4, ge=0, le=20, description="How often a failed request is sent again.")
    parallel: int = Field(4, ge=1, le=256, description="Requests at once.")


class Code(BaseModel):
    """Programs written by the model, run in a sandbox: pass@k. Needs --allow-code-exec."""

    model_config = STRICT
    problems: str = Field(
        "bundled", description="A JSONL file or folder in HumanEval's shape; bundled: 40 small ones, zh and en."
    )
    samples: int = Field(1, ge=1, le=200, description="Programs written for each problem.")
    k: tuple[int, ...] = Field((1,), min_length=1, description="The k of pass@k; none above samples.")
    temperature: float = Field(0.8, ge=0, description="Of several samples; a single one is greedy.")
    max_new_tokens: int = Field(256, ge=1, description="The longest program, in tokens.")
    limit: int | None = Field(None, ge=1, description="At most so many problems, the first ones.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.k) < 1 or max(self.k) > self.samples:
            raise ValueError(f"k goes from 1 to samples, which is {self.samples}")
        return self


class Review(BaseModel):
    """Blind A/B rating by people."""

    model_config = STRICT
    models: tuple[str, str] = Field(description="The two rows whose answers are laid side by side.")
    samples: int = Field(50, ge=1, le=1000, description="At most so many dialogues.")
    seed: int = Field(0, ge=0, description="Shuffles dialogues and sides.")
    ratings: tuple[str, ...] = Field((), description="What raters exported: JSON files.")


class Config(BaseModel):
    model_config = STRICT
    max_new_tokens: int = Field(48, ge=1, description="The longest answer, in tokens.")
    max_samples: int | None = Field(None, ge=1, description="At most so many test dialogues, the first ones; None: all.")
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy; above, tokens are drawn.")
    top_p: float = Field(1.0, gt=0, le=1, description="The share of probability that tokens are drawn from.")
    beams: int = Field(1, ge=1, le=64, description="More than one: beam search, which Hugging Face models alone can do.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of drawing.")
    batch_size: int | None = Field(
        None, ge=1, description="Prompts answered at once by a Hugging Face model; None: as memory allows."
    )
    slots: int | None = Field(None, ge=1, le=64, description="Prompts answered at once by llama.cpp; None: chosen for speed.")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="What runs Hugging Face folders.")
    endpoint: Endpoint | None = Field(None, description="One row more: a URL, or {url, model, key_env, …}.")
    sensitive: tuple[str, ...] = Field(
        (), description="Word lists; the share of answers that hold one of their words is reported."
    )
    tasks: tuple[str, ...] = Field(
        (), description="Benchmarks of lm-evaluation-harness: cmmlu, ceval-valid, mmlu, …, or a task's .yaml."
    )
    task_limit: int | None = Field(None, ge=1, description="At most so many questions of each task.")
    task_fewshot: int | None = Field(None, ge=0, description="Examples before each question; None: as the task says.")
    code: Code | None = Field(None, description="pass@k on problems whose programs are run.")
    compat: tuple[Literal["llamafactory", "rouge-chinese"], ...] = Field(
        (), description="Other tools' numbers beside ours, labelled."
    )
    review: Review | None = Field(None, description="A page for blind rating, and what raters said.")
    gate: Gate | None = Field(None, description="What variants must be to pass.")

    @field_validator("endpoint", mode="before")
    @classmethod
    def _url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @property
    def decoding(self) -> Any:
        from llmkit.answers import Decoding

        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.beams, self.seed)
