"""How far a variant's next-token distribution lies from the merged model's, on real answers. Knows models; not files' meaning.

The reference is kept as the last hidden state at each answer token, [tokens, hidden] floats, and turned into logits
against the reference's own output layer when it is compared: a 262k vocabulary is never stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkit.engine import loading, probe
from llmkit.engine.mask import Encoded

# Rows of the vocabulary-wide matrices that are alive at once: 64 × 262k × 4 bytes is 67 MB.
CHUNK = 64
# Samples in one forward pass.
BATCH = 16


@dataclass(frozen=True)
class Reference:
    """What `remember` wrote: `hidden` float32 [tokens, hidden] for `samples`; `head` the folder whose output layer reads it."""

    samples: Sequence[Encoded]
    hidden: Path
    head: Path


def remember(model: Any, samples: Sequence[Encoded], *, folder: Path, saved_as: Path) -> Reference:
    """Keep `model`'s hidden states at the answers' tokens of `samples` in `folder`; `saved_as` is the model's own folder."""
    path = folder / "reference.npy"
    np.save(path, hidden_states(model, samples).numpy(), allow_pickle=False)
    return Reference(samples, path, saved_as)


def mean_kl(model: Any, reference: Reference) -> float:
    """Mean KL(reference ‖ model) in nats over the answers' tokens of the reference's samples."""
    expected = torch.from_numpy(np.load(reference.hidden, allow_pickle=False))
    found = hidden_states(model, reference.samples)
    referee = Head.saved_in(reference.head)
    own = Head.of(model)
    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(found), CHUNK):
            rows = slice(first, first + CHUNK)
            total += float(probe.kl(referee(expected[rows]), own(found[rows])).sum())
    return total / len(found)


def hidden_states(model: Any, samples: Sequence[Encoded]) -> torch.Tensor:
    """The last hidden state from which each learnt token of `samples` is predicted: float32 [tokens, hidden], on the CPU.

    In the samples' order, whatever batches they were computed in.
    """
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].input_ids))
    found: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for first in range(0, len(order), BATCH):
            chunk = order[first : first + BATCH]
            states = model.base_model(**_padded([samples[index].input_ids for index in chunk], model.device), use_cache=False)
            for row, index in enumerate(chunk):
                # Token i is predicted from position i - 1.
                learnt = torch.tensor(samples[index].labels_mask[1:], device=model.device)
                found[index] = states.last_hidden_state[row, : len(learnt)][learnt].float().cpu()
    return torch.cat([found[index] for index in range(len(samples))])


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Right-padded: causal attention keeps what stands before the padding as it is."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": seen}


class Head:
    """A model's output layer alone: hidden float32 [rows, hidden] → logits float32 [rows, vocabulary]."""

    def __init__(self, weight: torch.Tensor, softcap: float | None) -> None:
        self._weight = weight.detach().float().cpu()
        self._softcap = softcap

    @classmethod
    def of(cls, model: Any) -> "Head":
        return cls(model.get_output_embeddings().weight, getattr(model.config, "final_logit_softcapping", None))

    @classmethod
    def saved_in(cls, folder: Path) -> "Head":
        """Read from a model folder without loading the model."""
        weight = loading.read_tensor(folder, "lm_head.weight", "model.embed_tokens.weight")
        return cls(weight, getattr(loading.load_config(folder), "final_logit_softcapping", None))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden @ self._weight.T
        return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits
