"""Measures how strongly each input column of a model's linear layers is driven, and picks the texts to measure it on.

Knows models, tokenizers and templates; nothing of GGUF, whose tensor names come from outside. The numbers are those of
llama.cpp's tools/imatrix: Σ x² per column over all tokens. That GGUF has the rows of a query or key matrix in another order
changes nothing here: a column stays the same column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from llmkit import progress
from llmkit.engine import loading
from llmkit.engine.mask import Record, encode_all
from llmkit.engine.templates import ChatTemplate
from llmkit.errors import DataError, FidelityError

Sums = np.ndarray[Any, np.dtype[np.float32]]
# A dialogue's length at most; what is over loses its oldest exchanges.
LONGEST = 2048
# Tokens of one forward pass: more saves no time and costs memory.
PASS_TOKENS = 2048
# A plain text is read in pieces as long as llama.cpp's, each opened by BOS where the tokenizer has one.
PIECE = 512
_RECORDS_AT_ONCE = 64
_CHARACTERS_PER_TOKEN = 64  # no more is read of a text file than its token budget could need


def collect(
    folder: Path, samples: Sequence[Sequence[int]], names: Mapping[str, str], bar: progress.Bar
) -> dict[str, tuple[Sums, int]]:
    """Run the model in `folder` over `samples` and sum the squares of what goes into its layers. No activation is kept.

    Args:
        folder: config.json and safetensors; computed in fp32, summed in fp64.
        samples: token ids.
        names: a linear layer's weight by its name in the model → the key of the result. Fused layers (Phi-3's qkv_proj and
            gate_up_proj) are one layer, as they are in GGUF.
        bar: advanced by one a sample.

    Returns:
        Key → (Σ x² per input column, float32 [width]; the number of tokens summed).

    Raises:
        DataError: no samples, a token the model does not have, a name that is no linear layer's, or a layer that saw nothing.
        FidelityError: a layer's input was not finite.
    """
    model = loading.load_model(folder)
    _check_samples(samples, model)
    tallies = {key: _Tally(_linear(model, name)) for name, key in names.items()}
    rows = _Rows()
    hooks = [tally.layer.register_forward_pre_hook(tally.hook(rows)) for tally in tallies.values()]
    try:
        with torch.inference_mode():
            for batch in _batches(samples):
                # Without the head, which is not measured: its logits would be the largest tensor by far.
                model.base_model(**rows.pad(batch, model.device), use_cache=False)
                bar.advance(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return _results(tallies)


def calibration(
    records: Sequence[Record], tokenizer: Any, template: ChatTemplate, *, max_tokens: int, seed: int = 0
) -> list[list[int]]:
    """Token ids of dialogues from all over `records`, rendered as training renders them, `max_tokens` in all.

    Args:
        records: with id and messages, of the training split.
        tokenizer, template: the trained model's.
        max_tokens: the last dialogue is cut there.
        seed: of the order in which dialogues are taken; with it the choice is always the same.

    Raises:
        DataError: no dialogue can be used.
        UsageError, FidelityError: as `mask.encode_all`.
    """
    order = list(range(len(records)))
    Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    return _fill(_dialogues((records[index] for index in order), tokenizer, template), max_tokens, "no dialogue can be used")


def calibration_text(path: Path, tokenizer: Any, *, max_tokens: int) -> list[list[int]]:
    """Token ids of the beginning of a UTF-8 text file, in pieces of `PIECE`, `max_tokens` in all.

    Raises:
        DataError: the file cannot be read or is empty.
    """
    try:
        if not path.is_file():  # a pipe would block, and may have no end
            raise ValueError("no such file")
        with path.open(encoding="utf-8") as stream:
            text = stream.read(max_tokens * _CHARACTERS_PER_TOKEN)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the calibration text: {error}", code="LK0113", where=str(path)) from None
    return _fill(_pieces(text, tokenizer), max_tokens, f"the calibration text {path} is empty")


class _Rows:
    """Which rows of a batch are tokens and not padding."""

    def __init__(self) -> None:
        self._real = torch.empty(0, dtype=torch.bool)

    def pad(self, batch: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
        """The batch as the model takes it. Right-padded: causal attention keeps what stands before the padding as it is."""
        width = max(len(ids) for ids in batch)
        tokens = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch], device=device)
        seen = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=device)
        self._real = seen.bool().flatten()
        return {"input_ids": tokens, "attention_mask": seen}

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] → [tokens, width]."""
        return x.flatten(0, -2)[self._real.to(x.device)]


class _Tally:
    """Σ x² of one layer's input."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer
        self.sums: torch.Tensor | None = None
        self.count = 0

    def hook(self, rows: _Rows) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            x = rows.of(given[0])
            squares = x.float().square().sum(0, dtype=torch.float64)
            self.sums = squares if self.sums is None else self.sums + squares
            self.count += len(x)

        return add


def _linear(model: Any, name: str) -> torch.nn.Module:
    try:
        layer = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        layer = None
    if not isinstance(layer, torch.nn.Linear):
        raise DataError(f"the model has no linear layer {name}", code="LK0612")
    return layer


def _check_samples(samples: Sequence[Sequence[int]], model: Any) -> None:
    if not samples or not all(samples):
        raise DataError(
            "no text to measure the importance matrix on", code="LK0612", next="give more data or a larger token budget"
        )
    known = model.get_input_embeddings().num_embeddings
    largest = max(max(ids) for ids in samples)
    if largest >= known or min(min(ids) for ids in samples) < 0:
        raise DataError(
            f"the calibration text has the token {largest}, the model knows {known}",
            code="LK0612",
            next="use its own tokenizer",
        )


def _batches(samples: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Like lengths together, as many as `PASS_TOKENS` allow."""
    batch: list[Sequence[int]] = []
    for ids in sorted(samples, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _results(tallies: Mapping[str, _Tally]) -> dict[str, tuple[Sums, int]]:
    blind = [name for name, tally in tallies.items() if not tally.count]
    if blind:
        raise DataError(
            f"{len(blind)} layers saw no input: {', '.join(blind[:3])}",
            code="LK0612",
            next="the importance matrix needs them all",
        )
    found: dict[str, tuple[Sums, int]] = {}
    for name, tally in tallies.items():
        assert tally.sums is not None
        sums = tally.sums.cpu().numpy().astype(np.float32)
        if not np.isfinite(sums).all():
            raise FidelityError(
                f"what goes into {name} is not finite", code="LK0319", next="the model is broken: train it again"
            )
        found[name] = (sums, tally.count)
    return found


def _dialogues(records: Iterator[Record], tokenizer: Any, template: ChatTemplate) -> Iterator[list[int]]:
    while chunk := list(islice(records, _RECORDS_AT_ONCE)):
        encoded = encode_all(chunk, tokenizer, template, max_length=LONGEST, on_overlong="truncate_left")
        yield from (one.input_ids for one in encoded.items)


def _pieces(text: str, tokenizer: Any) -> Iterator[list[int]]:
    opening = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = PIECE - len(opening)
    yield from ([*opening, *ids[start : start + step]] for start in range(0, len(ids), step))


def _fill(samples: Iterator[list[int]], max_tokens: int, otherwise: str) -> list[list[int]]:
    """Samples until there are `max_tokens`."""
    found: list[list[int]] = []
    left = max_tokens
    for ids in samples:
        if left <= 0:
            break
        found.append(ids[:left])
        left -= len(found[-1])
    if not found:
        raise DataError(
            otherwise, code="LK0612", next="the importance matrix needs text: give more data or a larger token budget"
        )
    return found
