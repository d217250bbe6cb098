"""What each step of a chain needs: memory, disk, time. Knows configurations as plain mappings, and what each step's code does.

Memory is that of the process that does the work; the one that waits for it holds half a gigabyte more.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmkit.planning import duration, inference, weights
from llmkit.planning import training as train
from llmkit.planning.data import Course, Data, course, longest_prompt, worst
from llmkit.planning.duration import Time
from llmkit.planning.machine import Machine
from llmkit.planning.peaks import MAPPED, Peak, highest
from llmkit.planning.shapes import Shape

Settings = Mapping[str, Any]
HEADROOM = 1.2  # of a model's fp32 weights: what merge wants free before it keeps them in memory
MEASURED = 5  # bytes a weight that export wants free to compare files with the model
# As steps/export has it; a test compares them.
CANDIDATES = "q8_0"  # the largest type that `auto` may write
DIALOGUES, TESTS = 40, 134
_PROBES = 2 * 100 * 4  # logits of a hundred tokens, twice, float32
_TOKENIZER_FILE = 127  # bytes of tokenizer.json a vocabulary entry
_GGUF_KEYS = 25  # bytes of a GGUF's vocabulary an entry
_LIGHT = 150_000_000  # a process without torch
_RECORD = 1_000  # bytes that cleaning holds of a record: hashes, signatures
_CHECKPOINTS = 4  # three that are kept and one in the making
_INT8_WORKING = 2  # LLM.int8 holds each product in 32 bits beside its halves
_WRITER = 300_000_000
BATCH = 32  # prompts at once on a CPU, as engine/room has it
_CLEANED = 3_000_000  # bytes a second
_DECODING = 0.3  # share of a processor's rate that answering reaches


@dataclass(frozen=True)
class World:
    """What a plan is drawn in. `data`: the training side; `tests`: the test side; `before`: the step's facts of last time.

    `source_bytes`: of the raw data; `models`: rows of an evaluation beside GGUF files.
    """

    shape: Shape
    machine: Machine
    data: Data | None = None
    tests: Data | None = None
    before: Mapping[str, Any] | None = None
    source_bytes: int = 0
    tuned: bool = True
    seed: int = 42
    quantized: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        return bool(self.machine.gpus)


@dataclass(frozen=True)
class Need:
    """What one step needs.

    `memory`: its peak, on the GPU where there is one; `writes`: bytes that stay, `scratch`: that are there for a while beside
    them; `notes`: what the numbers rest on, and what the engine does where memory is short.
    """

    memory: Peak
    writes: int
    scratch: int = 0
    time: Time | None = None
    notes: tuple[str, ...] = ()
    on_gpu: bool = False

    def to_json(self) -> dict[str, Any]:
        spent = None if self.time is None else {"low": self.time.low, "high": self.time.high, "how": self.time.how}
        disk = {"writes": self.writes, "scratch": self.scratch}
        return {
            "memory": self.memory.to_json(),
            "on_gpu": self.on_gpu,
            "disk": disk,
            "seconds": spent,
            "notes": list(self.notes),
        }


def of(verb: str, settings: Settings, world: World) -> Need:
    """What the step called `verb` needs with the settings that its configuration dumps to JSON.

    Raises:
        UsageError: a GGUF type that does not exist.
    """
    found = _STEPS[verb](settings, world)
    measured = duration.before(world.before) if verb != "finetune" else None
    return replace(found, time=measured) if measured else found


def precision(settings: Settings) -> str:
    """What `weights.size` calls that which quantize's settings make."""
    kind = "int8" if settings["bits"] == 8 else settings["quant_type"]
    return f"{kind}-dq" if settings["double_quant"] else kind


def training_run(settings: Settings, world: World, found: Course) -> train.Run:
    """The run that finetune's settings mean on this machine."""
    lora, asked = settings["lora"], settings["precision"]
    keys = {key: lora[key] for key in ("rank", "dropout", "dora")}
    return train.Run(
        method=settings["method"],
        precision=world.machine.precision if asked == "auto" else asked,
        load=found.load,
        rows=max(1, found.steps),
        lora=train.Lora(**keys, targets=lora["targets"], modules_to_save=tuple(lora["modules_to_save"])),
        gpu=world.gpu,
        shards=1 if settings["strategy"] == "ddp" else settings["processes"],
        strategy=settings["strategy"],
    )


def _clean(settings: Settings, world: World) -> Need:
    records = world.data.records if world.data else 0
    memory = Peak("cleaning", {"process": _LIGHT, "what was seen": records * _RECORD})
    size = world.source_bytes
    spent = Time.about(1 + size / _CLEANED, "computed") if size else None
    return Need(memory, size, time=spent)


def _pairs(settings: Settings, world: World) -> Need:
    size = world.data.size if world.data else world.source_bytes
    if settings["rejected"] != "generate":
        return Need(Peak("pairing", {"process": _LIGHT, "records": 4 * size}), 2 * size, time=Time.about(3, "computed"))
    prompt = longest_prompt(world.data, count=None, default=512)
    count = world.data.records if world.data else 0
    answering = _answering(world, "fp32", prompt=prompt, new=settings["max_new_tokens"], rows=BATCH)
    spent = _answer_time(world, count, settings["max_new_tokens"]) if count else None
    return Need(highest([_loading(world), answering]), 2 * size, time=spent, on_gpu=world.gpu)


def _finetune(settings: Settings, world: World) -> Need:
    found, run = _settled(settings, world)
    whole = train.peak(world.shape, run)
    if settings["processes"] > 1 and not run.gpu:  # all of them are here
        whole = Peak(whole.phase, {part: size * settings["processes"] for part, size in whole.parts.items()})
    learns = train.trainable(world.shape, run)
    notes = [
        f"lengths from {world.data.origin}" if world.data else f"records of {settings['max_length']} tokens, as none was seen"
    ]
    if run.checkpointing:
        notes.append(f"GPU memory runs out otherwise: with gradient checkpointing, {found.load.rows} sequences at once")
    return Need(
        whole,
        4 * learns + _TOKENIZER_FILE * world.shape.vocabulary,
        scratch=_CHECKPOINTS * 12 * learns,
        time=_training_time(world, run, found),
        notes=tuple(notes),
        on_gpu=run.gpu,
    )


def _settled(settings: Settings, world: World) -> tuple[Course, train.Run]:
    """What training will come to: as asked, or where GPU memory runs out the first retreat of engine/train that fits."""
    asked = None
    for tried, checkpointing in _footprints(settings):
        found = course(world.data, tried, seed=world.seed) if world.data else worst(tried)
        run = replace(training_run(tried, world, found), checkpointing=checkpointing)
        asked = asked or (found, run)
        if not run.gpu or train.peak(world.shape, run).required <= world.machine.gpus[0].free:
            return found, run
    assert asked
    return asked


def _footprints(settings: Settings) -> Iterator[tuple[Settings, bool]]:
    """Settings, and whether activations are made again: first that, then half the records, and half of that."""
    yield settings, False
    share = settings["batch_size"] // settings["processes"]
    size = settings["micro_batch"] or share
    while size:
        yield {**settings, "micro_batch": size}, True
        size = max((half for half in range(1, size // 2 + 1) if size % half == 0), default=0)


def _merge(settings: Settings, world: World) -> Need:
    exact = 4 * world.shape.parameters
    kept = exact if settings["dtype"] == "fp32" else exact // 2
    peak, notes = _loading(world, probes=True), []
    if exact * HEADROOM > world.machine.room:
        # Its weights then come from disk as they are used; see engine/merge and engine/loading.
        share = world.machine.room // 2
        peak = Peak("comparing from disk", {**peak.parts, "weights": share, MAPPED: 0})
        notes.append("the weights do not fit: they are read from disk as they are used, which is slow")
    spent = duration.compute(0, gpu=world.gpu, weights=6 * exact)
    return Need(
        peak,
        kept + _files(world),
        scratch=exact + kept + (exact if notes else 0),
        time=spent,
        notes=tuple(notes),
        on_gpu=world.gpu,
    )


def _quantize(settings: Settings, world: World) -> Need:
    size = weights.size(world.shape, precision(settings), skip=settings["skip"])
    spent = duration.compute(0, gpu=world.gpu, weights=8 * world.shape.parameters)
    return Need(_loading(world, probes=True), size + _files(world), time=spent, on_gpu=world.gpu)


def _export(settings: Settings, world: World) -> Need:
    shape, processors = world.shape, world.machine.processors
    kinds = [CANDIDATES] if settings["types"] == "auto" else list(settings["types"])
    kinds += [settings["adapter"]] if settings["adapter"] else []
    guided = bool(settings["imatrix"]) or None
    sizes = [weights.gguf_size(shape, kind, imatrix=guided) + _GGUF_KEYS * shape.vocabulary for kind in kinds]
    adapter = 2 * shape.elements("linear") // 25 if settings["adapter"] else 0
    files, notes = len(kinds), []
    writing = Peak("writing", {"writers": _WRITER})
    peak = highest(
        [writing, Peak("proving", {"weights": max(sizes), "KV cache": inference.cache(shape, 2048), "process": _LIGHT})]
    )
    if MEASURED * shape.parameters > world.machine.room:
        notes.append("the model does not fit beside its files: what they keep is not measured")
        spent = duration.compute(
            0, gpu=False, extra=10 * files + duration.encoding(files * shape.parameters, processors=processors)
        )
    else:
        peak = highest([peak, _loading(world, probes=True)])
        flops = 2 * DIALOGUES * 100 * shape.elements("linear") * (files + 1)
        extra = 15 * files + duration.encoding(files * shape.parameters, processors=processors)
        spent = duration.compute(flops, gpu=world.gpu, extra=extra)
    return Need(peak, sum(sizes) + adapter, time=spent, notes=tuple(notes), on_gpu=world.gpu and not notes)


def _eval(settings: Settings, world: World) -> Need:
    """One row after another, each in a process of its own."""
    wanted = settings["max_samples"] or (world.tests.records if world.tests else TESTS)
    count = min(wanted, world.tests.records) if world.tests else wanted
    prompt = longest_prompt(world.tests, count=count, default=512)
    rows = settings["batch_size"] or BATCH
    asked = {"prompt": prompt, "new": settings["max_new_tokens"], "rows": min(rows, count)}
    folders = ["fp32", *world.quantized]
    peaks = [_loading(world), *(_answering(world, precision, **asked) for precision in folders)]
    peaks += [_loaded_file(world, kind) for kind in world.types]
    models = len(folders) + world.tuned + len(world.types)
    one = _answer_time(world, count, settings["max_new_tokens"])
    spent = Time(one.low * models, one.high * models, one.how)
    states = 4 * world.shape.hidden * count * 64
    return Need(highest(peaks), 2_000_000 + 2_000 * count * models, scratch=states, time=spent, on_gpu=world.gpu)


_STEPS: dict[str, Callable[[Settings, World], Need]] = {
    "clean": _clean,
    "pairs": _pairs,
    "finetune": _finetune,
    "merge": _merge,
    "quantize": _quantize,
    "export": _export,
    "eval": _eval,
}


def _process(world: World) -> int:
    return train.CONTEXT if world.gpu else train.PROCESS + train.TOKENIZER * world.shape.vocabulary


def _loading(world: World, *, probes: bool = False) -> Peak:
    """A model in float32; on a CPU its file is mapped beside it while it comes in."""
    size = world.shape.parameters
    parts = {"weights": 4 * size, "process": _process(world)}
    if not world.gpu:
        parts[MAPPED] = 2 * size
    if probes:
        parts["logits"] = _PROBES * world.shape.vocabulary
    return Peak("loading", parts)


def _answering(world: World, precision: str, *, prompt: int, new: int, rows: int) -> Peak:
    """A folder's model at work; what is not quantized is float32."""
    shape = world.shape
    size = 4 * shape.parameters
    working = inference.passing(shape, prompt, width=4) + 4 * prompt * prompt
    if precision != "fp32":
        size = weights.size(shape, precision) + 2 * sum(one.elements for one in shape.tensors if not weights.is_quantized(one))
        working *= _INT8_WORKING if precision == "int8" else 1
    parts = {
        "weights": size,
        "KV cache": rows * inference.cache(shape, prompt + new, width=4),
        "activations": rows * working,
        "logits": rows * 4 * inference.LOGITS * shape.vocabulary,
        "process": _process(world),
    }
    return Peak("answering", parts)


def _loaded_file(world: World, kind: str) -> Peak:
    """A GGUF as its KL is measured: its weights unpacked to float32."""
    return Peak("weighing", {**_loading(world).parts, MAPPED: weights.size(world.shape, kind)})


def _training_time(world: World, run: train.Run, found: Course) -> Time | None:
    if not found.tokens:
        return None
    if known := duration.before(world.before, tokens=found.tokens):
        return known
    shape = world.shape
    passes = 6 if run.method == "full" else 4
    flops = passes * (found.tokens * shape.elements("linear") + found.scored * shape.hidden * shape.vocabulary)
    efficiency = 1.5 if run.precision == "bf16" else 0.8
    return duration.compute(flops, gpu=run.gpu, efficiency=efficiency, weights=4 * shape.parameters)


def _answer_time(world: World, count: int, new: int) -> Time:
    flops = 2 * count * new * world.shape.parameters
    return duration.compute(flops, gpu=world.gpu, efficiency=_DECODING, weights=4 * world.shape.parameters)


def _files(world: World) -> int:
    return _TOKENIZER_FILE * world.shape.vocabulary
