"""Peak memory of a fine-tune, by what engine/train, engine/loss and engine/fused keep. Knows sizes; loads nothing.

Weights come in float32 and are rounded once the adapter is on them; what learns, its gradient and its two moments stay
float32; activations of a packed row are kept layer by layer for the way back; logits are made a chunk at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmkit.planning import weights
from llmkit.planning.peaks import MAPPED, Peak, highest
from llmkit.planning.shapes import Shape, Tensor

CHUNK_ELEMENTS = 2**25  # of logits: engine/loss has the same, and a test compares them
SHORT = 192  # tokens up to which a CPU writes attention out: engine/packing's
TILE = 64  # engine/loss fills a packed row up to a multiple of it
PROCESS = 530_000_000  # resident bytes of a process that has imported torch, transformers and peft
# A CPU's kernel library makes, and keeps, kernels for each new length of a row, as many as its cache holds: measured over 12
# and 120 steps on two models, beside an allocator's holes.
KERNELS, KERNEL, MOST_KERNELS = 200_000_000, 4_500_000, 150
CONTEXT = 800_000_000  # of a GPU: its context, cuBLAS' workspaces, an allocator's holes
TOKENIZER = 450  # bytes a vocabulary entry
Targets = Literal["all-linear"] | Sequence[str]


@dataclass(frozen=True)
class Lora:
    """The adapter, as `steps.finetune.Lora` says what each means."""

    rank: int = 16
    targets: Targets = "all-linear"
    dropout: float = 0.0
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """The largest micro-batch: `tokens` in its packed row, `scored` of them learnt, `rows` sequences of at most `longest`."""

    tokens: int
    scored: int
    rows: int
    longest: int


@dataclass(frozen=True)
class Run:
    """How it trains.

    `rows`: how many micro-batches there will be; `shards`: processes that share weights and optimizer out (FSDP, or
    DeepSpeed's stage 2), else 1.
    """

    method: Literal["lora", "qlora", "full"]
    precision: Literal["bf16", "fp32"]
    load: Load
    rows: int = MOST_KERNELS
    lora: Lora = Lora()
    checkpointing: bool = False
    gpu: bool = False
    shards: int = 1
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"

    @property
    def width(self) -> int:
        """Bytes of a number that matrices are multiplied in."""
        return 2 if self.precision == "bf16" else 4


def peak(shape: Shape, run: Run) -> Peak:
    """The higher of loading and training, in bytes of one process's device (its resident set where there is no GPU)."""
    return highest([loading(shape, run), training(shape, run)])


def loading(shape: Shape, run: Run) -> Peak:
    """The base as it comes in: whole and in float32 on every process; on a CPU its file is mapped beside it."""
    parts = {"weights": loaded(shape, run.method), **_process(shape, run)}
    if not run.gpu:
        parts[MAPPED] = weights.size(shape, "bf16")
    return Peak("loading", parts)


def training(shape: Shape, run: Run) -> Peak:
    learns, shards = trainable(shape, run), max(1, run.shards)
    spread = shards if run.strategy == "fsdp" else 1
    of_optimizer = 1 if run.strategy == "ddp" else shards
    return Peak(
        "training",
        {
            "weights": held(shape, run) // spread,
            "adapter": 0 if run.method == "full" else 4 * learns // spread,
            "gradients": 4 * learns // of_optimizer,
            "optimizer": 8 * learns // of_optimizer,
            "activations": activations(shape, run),
            "logits": logits(shape, run),
            **_process(shape, run),
            **({} if run.gpu else {"kernels": KERNELS + KERNEL * min(run.rows, MOST_KERNELS)}),
        },
    )


def loaded(shape: Shape, method: str) -> int:
    """Bytes of the base as `load_model` brings it: float32, or linear layers in double-quantized 4 bits."""
    if method != "qlora":
        return 4 * shape.parameters
    return sum(_four_bits(one) if one.kind == "linear" else 4 * one.elements for one in shape.tensors)


def held(shape: Shape, run: Run) -> int:
    """Bytes of the base while it trains: under bf16 frozen linear layers are rounded, and a tied head gets a copy."""
    if run.method == "full":
        # Autocast keeps a rounded copy of each matrix for the length of a step.
        return 4 * shape.parameters + (2 * shape.elements("linear", "head") if run.precision == "bf16" else 0)
    total = 0
    for one in shape.tensors:
        if one.kind == "linear" and run.method == "qlora":
            total += _four_bits(one)
        else:
            total += (run.width if one.kind in ("linear", "head") else 4) * one.elements
    copied = shape.elements("embedding") if shape.tied and run.precision == "bf16" else 0
    return total + 2 * copied


def trainable(shape: Shape, run: Run) -> int:
    """How many numbers learn."""
    if run.method == "full":
        return shape.parameters
    adapted = [one for one in shape.tensors if _is_target(one, run.lora.targets)]
    low_rank = sum(run.lora.rank * (one.shape[-1] + one.elements // one.shape[-1]) for one in adapted)
    magnitudes = sum(one.elements // one.shape[-1] for one in adapted) if run.lora.dora else 0
    return low_rank + magnitudes + sum(_saved(shape, name) for name in run.lora.modules_to_save)


def activations(shape: Shape, run: Run) -> int:
    """Bytes kept for the way back, and of one layer's gradients on it."""
    tokens = -(-run.load.tokens // TILE) * TILE
    layer = tokens * (_kept_by_token(shape, run)) + _attention(shape, run)
    back = tokens * (3 * run.width * shape.feed_forward + 16 * shape.hidden)
    if run.checkpointing:
        return shape.layers * 4 * shape.hidden * tokens + layer + back
    return shape.layers * layer + back


def logits(shape: Shape, run: Run) -> int:
    """Bytes of one chunk of logits and what is made of it; of the hidden states under them and their slopes."""
    scored, width = max(1, run.load.scored), run.width
    chunk = min(scored, max(1, CHUNK_ELEMENTS // shape.vocabulary)) * shape.vocabulary
    states = 2 * width * shape.hidden * scored
    learns = run.method == "full" or any("head" in name for name in run.lora.modules_to_save)
    # A head that learns goes the long way: logits, float32, softmax and its gradient.
    return states + chunk * (width + 12 if learns else width)


def _process(shape: Shape, run: Run) -> dict[str, int]:
    return {"process": CONTEXT if run.gpu else PROCESS + TOKENIZER * shape.vocabulary}


def _kept_by_token(shape: Shape, run: Run) -> int:
    """Bytes that one token leaves in one layer, attention's weights aside."""
    hidden, query, key, inner, width = shape.hidden, shape.query, shape.key, shape.feed_forward, run.width
    norms = 4 * hidden * shape.norms + (4 * (query + key) if shape.head_norms else 0)
    inputs = width * (2 * hidden + query + inner)  # of q/k/v, of o, of gate and up, of down
    attended = width * (2 * query + 2 * key)  # gathered queries, keys and values; what comes out
    total = norms + inputs + attended + 3 * width * inner  # gate, its activation, up
    if run.method == "full":
        return total + 4 * hidden * shape.norms + 3 * width * hidden  # norms learn; each matrix casts its own input
    if run.method == "qlora" or run.lora.dropout or run.lora.dora:
        # Not fused: peft keeps a copy of each layer's input, and under dropout the dropped one and its mask.
        read = 5 * hidden + query + inner
        total += width * (3 * hidden + read) + (5 * read if run.lora.dropout else 0)
    return total


def _attention(shape: Shape, run: Run) -> int:
    """Bytes of one layer's attention weights, where they are written out; the fused kernels keep none."""
    load = run.load
    if not shape.softcap and (run.gpu or load.longest > SHORT):
        return 0
    pairs = load.rows * shape.heads * load.longest**2
    return pairs * (4 + run.width + (8 if shape.softcap else 0))


def _four_bits(tensor: Tensor) -> int:
    return weights.four_bits(tensor, double=True)


def _is_target(tensor: Tensor, targets: Targets) -> bool:
    if tensor.kind != "linear":
        return False
    module = tensor.name.removesuffix(".weight")
    return isinstance(targets, str) or any(module == name or module.endswith(f".{name}") for name in targets)


def _saved(shape: Shape, name: str) -> int:
    found = [one.elements for one in shape.tensors if f".{one.name}".removesuffix(".weight").endswith(f".{name}")]
    if not found and shape.tied and name == "lm_head":
        return shape.elements("embedding")
    return sum(found)
