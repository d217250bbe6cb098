"""How far a variant's next-token distribution lies from the merged model's, on real answers. Knows models; not files' meaning.

The numbers are those of llama.cpp's `llama-perplexity --kl-divergence`, over the answers' tokens of held-out dialogues instead
of a running text. The reference is kept as the last hidden state at each of those tokens, [tokens, hidden] floats in a file,
and turned into log-probabilities against its own output layer a few rows at a time: [tokens, vocabulary] is never stored, in
memory or on disk.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkit.engine import loading, probe
from llmkit.engine.mask import Encoded
from llmkit.errors import DataError

# Rows of the vocabulary-wide matrices that are alive at once: 64 × 262k × 4 bytes is 67 MB.
CHUNK = 64
# One forward pass: samples, and tokens with their padding, of which a single long sample may take more.
BATCH, BATCH_TOKENS = 16, 4096
NEAR = 0.05  # of the largest logit: further apart, and the output layer is not all that makes logits of hidden states


@dataclass(frozen=True)
class Reference:
    """What `remember` wrote: `hidden` float32 [tokens, hidden] for `samples`; `head` the folder whose output layer reads it.

    `perplexity`: the reference's own on the answers' tokens.
    """

    samples: Sequence[Encoded]
    hidden: Path
    head: Path
    perplexity: float

    @property
    def divergence(self) -> "Divergence":
        """The reference's from itself."""
        tokens = sum(_learnt(sample) for sample in self.samples)
        return Divergence(tokens=tokens, perplexity=self.perplexity)


@dataclass(frozen=True)
class Divergence:
    """Of a model from the reference, over `tokens` of answers; by default, none. NaN or infinite logits make such numbers here.

    `perplexity`: the model's; `mean`, `median`, `p99`: KL(reference ‖ model) in nats; `mean_error`: standard error of the mean;
    `same_top`: share of tokens before which both find the same token likeliest; `rms_dp`: root mean square, 0 to 1, of the
    difference in the right token's probability; `log_perplexity_ratio`: ln PPL(model) − ln PPL(reference), and its standard
    error, token by token in pairs.
    """

    tokens: int
    perplexity: float
    mean: float = 0.0
    mean_error: float = 0.0
    median: float = 0.0
    p99: float = 0.0
    same_top: float = 1.0
    rms_dp: float = 0.0
    log_perplexity_ratio: float = 0.0
    log_perplexity_ratio_error: float = 0.0


def remember(model: Any, samples: Sequence[Encoded], *, folder: Path, saved_as: Path) -> Reference:
    """Keep `model`'s hidden states at the answers' tokens of `samples` in `folder`; `saved_as` is the model's own folder.

    Raises:
        DataError: there is no sample, or the model's logits are not its output layer's.
    """
    total = sum(_learnt(sample) for sample in samples)
    if not total:
        raise DataError("no answer to measure the model on", code="LK0721", where=str(saved_as))
    path, head = folder / "reference.npy", Head.of(model)
    _prove(head, model, samples[0])
    hidden = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(total, head.width))
    losses = np.empty(total)
    for places, states, labels in _states(model, samples):
        hidden[places] = states.cpu().numpy()
        losses[places] = -_right(head(states).log_softmax(-1), labels).double().cpu().numpy()
    hidden.flush()
    return Reference(samples, path, saved_as, _exp(losses.mean()))


def measure(model: Any, reference: Reference) -> Divergence:
    """How far `model` lies from the reference, on the reference's samples.

    Raises:
        DataError: their vocabularies differ in size, or the model's logits are not its output layer's.
    """
    expected = np.load(reference.hidden, mmap_mode="r", allow_pickle=False)
    head, referee = Head.of(model), Head.saved_in(reference.head, model.device)
    if head.vocabulary != referee.vocabulary:
        raise DataError(
            f"vocabularies of {head.vocabulary} and {referee.vocabulary} tokens cannot be compared",
            code="LK0721",
            where=str(reference.head),
        )
    _prove(head, model, reference.samples[0])
    found = np.empty((len(expected), len(_COLUMNS)))
    for places, states, labels in _states(model, reference.samples):
        theirs = torch.from_numpy(np.array(expected[places])).to(model.device)
        found[places] = _compare(referee(theirs), head(states), labels).double().cpu().numpy()
    return _summary(found)


_COLUMNS = ("kl", "loss", "loss_difference", "probability_difference", "same_top")


def _compare(reference: torch.Tensor, other: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`_COLUMNS` of each row of two [rows, vocabulary] logit matrices."""
    with torch.inference_mode():
        expected, got = reference.log_softmax(-1), other.log_softmax(-1)
        right, ours = _right(expected, labels), _right(got, labels)
        # Among NaN the first is taken for the largest, which may be the right place by chance.
        same = (expected.argmax(-1) == got.argmax(-1)) & ~got[:, 0].isnan()
        return torch.stack([probe.kl_of(expected, got), -ours, right - ours, ours.exp() - right.exp(), same.float()], -1)


def _right(log_probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return log_probabilities.gather(-1, labels[:, None])[:, 0]


def _summary(found: np.ndarray) -> Divergence:
    columns = dict(zip(_COLUMNS, found.T, strict=True))
    kl, difference = columns["kl"], columns["loss_difference"]
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are findings
        return Divergence(
            tokens=len(kl),
            perplexity=_exp(columns["loss"].mean()),
            mean=float(kl.mean()),
            mean_error=_error(kl),
            median=float(np.median(kl)),
            p99=float(np.quantile(kl, 0.99)),
            same_top=float(columns["same_top"].mean()),
            rms_dp=float(np.sqrt(np.square(columns["probability_difference"]).mean())),
            log_perplexity_ratio=float(difference.mean()),
            log_perplexity_ratio_error=_error(difference),
        )


def _error(values: np.ndarray) -> float:
    """The standard error of the mean; 0 of a single value, as llama.cpp has it."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _states(model: Any, samples: Sequence[Encoded]) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """The last hidden states from which learnt tokens are predicted, float32 [rows, hidden], and those tokens, on the model's
    device; at most `CHUNK` rows, each time with their places among all learnt tokens of `samples`.
    """
    ends = np.cumsum([_learnt(sample) for sample in samples])
    for batch in _batches(samples):
        with torch.inference_mode():
            out = model.base_model(**_padded([samples[index].input_ids for index in batch], model.device), use_cache=False)
        for row, index in enumerate(batch):
            # Token i is predicted from position i - 1.
            learnt = torch.tensor(samples[index].labels_mask[1:], dtype=torch.bool, device=model.device)
            states = out.last_hidden_state[row, : len(learnt)][learnt].float()
            labels = torch.tensor(samples[index].input_ids[1:], device=model.device)[learnt]
            start = int(ends[index]) - len(states)
            for first in range(0, len(states), CHUNK):
                part = slice(first, min(first + CHUNK, len(states)))
                yield slice(start + part.start, start + part.stop), states[part], labels[part]


def _batches(samples: Sequence[Encoded]) -> Iterator[list[int]]:
    """Samples of like length, as many as one forward pass takes."""
    batch: list[int] = []
    for index in sorted(range(len(samples)), key=lambda index: len(samples[index].input_ids)):
        if batch and (len(batch) == BATCH or (len(batch) + 1) * len(samples[index].input_ids) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _learnt(sample: Encoded) -> int:
    return sum(sample.labels_mask[1:])


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded: causal attention keeps what stands before the padding as it is."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": seen}


def _prove(head: "Head", model: Any, sample: Encoded) -> None:
    """That logits are the output layer's product: an architecture may scale or shift them in a way that is not known here."""
    ids = torch.tensor([sample.input_ids[:BATCH]], device=model.device)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1:].float())[0]
    if bool(expected.isfinite().all()) and float((expected - found).abs().max()) > NEAR * float(expected.abs().max()):
        raise DataError(
            f"perplexity and KL cannot be measured for {model.config.model_type}: its logits are not its output layer's",
            code="LK0721",
            next="score its answers alone: llmkit eval --predictions P.jsonl --references R.jsonl",
        )


class Head:
    """A model's output layer alone: hidden float32 [rows, hidden] → logits float32 [rows, vocabulary]."""

    def __init__(self, weight: torch.Tensor, config: Any) -> None:
        self._weight = weight.detach().float()
        self._softcap = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies by the one, Granite divides by the other.
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    @classmethod
    def of(cls, model: Any) -> "Head":
        return cls(model.get_output_embeddings().weight, model.config.get_text_config())

    @classmethod
    def saved_in(cls, folder: Path, device: torch.device) -> "Head":
        """Read from a model folder without loading the model.

        Raises:
            DataError: it has no output layer by a known name.
        """
        weight = loading.read_tensor(folder, "lm_head.weight", "model.embed_tokens.weight").to(device)
        return cls(weight, loading.load_config(folder).get_text_config())

    @property
    def width(self) -> int:
        return self._weight.shape[1]

    @property
    def vocabulary(self) -> int:
        return self._weight.shape[0]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits = hidden @ self._weight.T
            logits = logits if self._scale == 1.0 else logits * self._scale
            return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits
