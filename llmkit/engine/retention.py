"""How much of a fine-tune other weights kept, and what they would say next. Knows models; nothing of files or runtimes.

Retention = 1 − KL(merged ‖ weights) / KL(merged ‖ base) over the answers' tokens of held-out dialogues: 1 where nothing was
lost, 0 where the base is all that is left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkit import progress
from llmkit.engine import divergence, loading
from llmkit.engine.divergence import Divergence, Reference
from llmkit.engine.mask import Encoded
from llmkit.engine.measure import Exam, Tasks, evaluate_tasks

TOP = 64  # of the likeliest next tokens that are handed out; the others hold next to nothing
State = Callable[[], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class NextToken:
    """The likeliest tokens after `ids`, with their natural log-probabilities, likeliest first."""

    ids: tuple[int, ...]
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Weighed:
    """`divergence`: from the merged model over the reference's samples, None without them; `tasks`: of an exam's benchmarks."""

    divergence: Divergence | None
    next_tokens: tuple[NextToken, ...]
    tasks: Tasks | None = None

    @property
    def kl(self) -> float | None:
        """Mean KL(merged ‖ weights) in nats."""
        return self.divergence.mean if self.divergence else None


def remember(
    merged: Path, samples: Sequence[Encoded], base: Path | None, keep_in: Path, bar: progress.Bar
) -> tuple[Reference, float | None]:
    """Keep the merged model's states at the answers' tokens of `samples` in `keep_in`; mean KL(merged ‖ base) in nats."""
    kept = divergence.remember(loading.load_model(merged), samples, folder=keep_in, saved_as=merged)
    loading.release()
    bar.advance(text="merged")
    return kept, divergence.measure(loading.load_model(base), kept).mean if base else None


def weigh(
    state: State,
    folder: Path,
    adapter: Path | None,
    against: Reference | None,
    prompts: Sequence[Sequence[int]],
    bar: progress.Bar,
    *,
    exam: Exam | None = None,
) -> Weighed:
    """What the model in `folder` is worth with the weights that `state` yields by its names, and `adapter` over them.

    Args:
        state: called here, in the process that measures.
        folder: names the architecture.
        adapter: a PEFT folder, or None.
        against: from `remember`; None where nothing is to be compared.
        prompts: token ids, after each of which the next token is asked for.
        bar: advanced once.
        exam: its benchmarks are done as well, with the tokenizer of the reference's folder, else of `folder`.

    Raises:
        DataError: the weights are not this model's.
    """
    model = loading.from_weights(folder, state())
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    found = Weighed(
        divergence.measure(model, against) if against else None,
        tuple(_next(model, ids) for ids in prompts),
        evaluate_tasks(model, loading.load_tokenizer(against.head if against else folder), exam) if exam else None,
    )
    bar.advance()
    return found


def _next(model: Any, ids: Sequence[int]) -> NextToken:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, -1]
    values, tokens = logits.float().log_softmax(-1).topk(min(TOP, len(logits)))
    return NextToken(tuple(ids), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
