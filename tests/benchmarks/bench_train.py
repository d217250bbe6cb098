"""How fast `finetune` trains beside TRL, and in how much memory: ORPO and SFT on two real models, real dialogues, one run.

    python tests/benchmarks/bench_train.py [NAME...]          # all by default; names as printed, and "head"

llmkit multiplies in bf16 and keeps the residual stream, the adapter and the loss in fp32. TRL 1.16 runs twice: `trl` does the
same (fp32 weights under autocast) and is what the bars are for; `trl, all in bf16` (bf16 weights, no autocast, fp32 adapter)
is its fastest of all and computes the residual stream, and ORPO's loss, in bf16. Each has the settings that were fastest for
it. Tried on Gemma, one thread, in work per processor second and peak MB (llmkit beside it: 3.1 pairs, 818; 76 tokens, 1277):

    weights, autocast, attention    ORPO, pairs      SFT, tokens     SFT padding-free, tokens
    fp32, yes, eager                1.27, 2970                       24.3, 1870
    fp32, yes, sdpa                 1.27, 2848       18.8, 2957      23.1, 1697
    bf16, no, eager                 1.70, 1578                       26.6, 1677

On other batches bf16 weights under autocast lay between these two, without autocast sdpa behind eager. Gradient checkpointing
is off; the order is ours, which groups by length; batches are collated in the process itself. TRL's packing is left out: it
would change what a batch is. Its SFT makes logits a tile at a time, but at every position; its ORPO makes all at once.

Both sides see the same token ids in the same batches in the same order, start from the same LoRA (rank 16, every linear
layer) and take the same optimizer, schedule and precision. Each run is a process of its own, the sides in turn, so that a
busy machine slows both; the best of each counts. The clock runs from the end of the second step. Memory is the largest
resident set while training, less that of the loaded model with its adapter just before the first step.
"""

import ctypes
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

ROUNDS = 2  # of a race with a bar; others run once
WARM_UP = 2  # steps that are not counted
SEED = 42
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}
BETA = 0.1
LR = 1e-4
MAX_LENGTH = 1024
# What TRL trains with, by objective and side; everything else is its default.
_SAME: dict[str, Any] = {"weights": "float32", "autocast": True, "attention": "eager"}
_ROUGH: dict[str, Any] = {"weights": "bfloat16", "autocast": False, "attention": "eager"}
_PACKED: dict[str, Any] = {"arguments": {"padding_free": True}}
TRL: dict[str, dict[str, dict[str, Any]]] = {
    "orpo": {"trl": _SAME, "trl, all in bf16": _ROUGH},
    "sft": {"trl": _SAME | _PACKED, "trl, all in bf16": _ROUGH | _PACKED},
}
LARGEST_GAP = 1e-3
MEMORY_BAR = 0.5
LOGITS_BAR = 0.25


@dataclass(frozen=True)
class Race:
    """One thing that both sides do. `exchanges`: how many of the corpus's make a dialogue; `bar`: least ratio of speeds."""

    name: str
    model: str
    languages: tuple[str, ...]
    template: str
    objective: Literal["sft", "orpo"]
    batch: int
    steps: int
    exchanges: int = 1
    precision: str = "bf16"
    bar: float | None = None


_GEMMA: dict[str, Any] = {"model": "demo:gemma-3-270m", "languages": ("zh", "en"), "template": "gemma"}
_SMOLLM2: dict[str, Any] = {"model": "demo:smollm2-135m", "languages": ("en",), "template": "model"}
RACES = (
    Race("gemma orpo", **_GEMMA, objective="orpo", batch=4, steps=10, bar=2.5),
    Race("gemma sft", **_GEMMA, objective="sft", batch=8, steps=10, bar=2.5),
    Race("smollm2 orpo", **_SMOLLM2, objective="orpo", batch=4, steps=10, bar=1.6),
    Race("gemma orpo, 4 exchanges", **_GEMMA, objective="orpo", batch=4, steps=6, exchanges=4),
    Race("gemma sft, 4 exchanges", **_GEMMA, objective="sft", batch=8, steps=6, exchanges=4),
)
# Equal losses, not speed: small batches, fp32.
CURVES = (
    Race("curve, smollm2 orpo", **_SMOLLM2, objective="orpo", batch=2, steps=50, precision="fp32"),
    Race("curve, smollm2 sft", **_SMOLLM2, objective="sft", batch=4, steps=50, precision="fp32"),
)


class Gauge:
    """What a process needs beyond what it holds when `start` is called. Linux alone tells."""

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading freed must not hide what training takes
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM := VmRSS
        self._before = _resident("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        return _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    return int(Path("/proc/self/status").read_text("ascii").split(f"{name}:")[1].split()[0]) * 1024


def watched() -> dict[str, Any]:
    """What the next transformers trainer of this process does: `ends` (seconds), `losses`, `peak` (bytes)."""
    import transformers.trainer

    found: dict[str, Any] = {"ends": [], "cpu": [], "losses": []}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            for weight in model.parameters():  # weights that still lie mapped in their file would count as the run's
                weight.detach().sum()
            self.gauge = Gauge()
            self.gauge.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found["ends"].append(time.perf_counter())
            found["cpu"].append(time.process_time())

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if "loss" in state.log_history[-1]:
                found["losses"].append(state.log_history[-1]["loss"])

        def on_train_end(self, *_: Any, **__: Any) -> None:
            found["peak"] = self.gauge.peak()

    # Every trainer takes these up, TRL's and ours alike.
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock())
    return found


# --- the data


def prepare(race: Race, folder: Path) -> None:
    """Into `folder`: train.jsonl (records that llmkit cleaned) and laid.json (their tokens, in the order of training)."""
    from llmkit.data.record import write_records

    records = _joined(_cleaned(race, folder), race.exchanges)
    if race.objective == "orpo":
        from llmkit.data.pairs import shuffle_rejected

        records = list(shuffle_rejected(records, SEED))
    write_records(folder / "train.jsonl", records)
    (folder / "valid.jsonl").write_text("", "utf-8")
    (folder / "laid.json").write_text(json.dumps(_laid(race, records)), "utf-8")


def _cleaned(race: Race, folder: Path) -> list[Any]:
    """The training side of the quickstart's data, cleaned by its rules."""
    from llmkit import origin
    from llmkit.data.record import read_records
    from llmkit.steps import clean

    found = origin.source("demo:chatterbot", languages=race.languages)
    out = folder / "clean"
    out.mkdir()
    config = clean.Config(min_turns=2, max_chars=256, split={"train": 0.8, "valid": 0.1, "test": 0.1})
    clean.run(config, {"source.0": found.ready or found.fetch()}, out)
    return list(read_records(out / "train.jsonl"))


def _joined(records: Sequence[Any], exchanges: int) -> list[Any]:
    """Every `exchanges` neighbours as one dialogue."""
    groups = [records[start : start + exchanges] for start in range(0, len(records) - exchanges + 1, exchanges)]
    return [group[0]._replace(messages=[message for one in group for message in one.messages]) for group in groups]


def _laid(race: Race, records: Sequence[Any]) -> list[dict[str, Any]]:
    """TRL's own columns of each record, in the order in which llmkit will see it."""
    from llmkit.engine import batches, loading, objectives, templates

    base = _base(race)
    given = [
        {"id": one.id, "messages": one.messages, **({"rejected": one.rejected} if one.rejected else {})} for one in records
    ]
    reading = objectives.Reading(
        loading.load_tokenizer(base), templates.resolve(race.template, base), MAX_LENGTH, on_overlong="error", loss_on="all"
    )
    found = objectives.prepare(race.objective, given, [], reading, beta=BETA, nll_on="full", bf16=True)
    lengths = [len(found.learnt(item).input_ids) for item in found.items]
    order = batches.layout(lengths, batch_size=race.batch, steps=race.steps, seed=SEED)
    return [_columns(found.items[index]) for index in order]


def _columns(item: Any) -> dict[str, Any]:
    if hasattr(item, "labels"):
        return {"input_ids": item.input_ids, "labels": item.labels}
    sides = {"chosen": item.chosen, "rejected": item.rejected}
    columns = {f"{name}_{key}": value for name, side in sides.items() for key, value in _side(side).items()}
    prompt = item.chosen.input_ids[: item.chosen.labels_mask.index(True)]
    return {**columns, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


def _side(side: Any) -> dict[str, list[int]]:
    return {"input_ids": side.input_ids, "attention_mask": [1] * len(side.input_ids), "labels": side.labels}


def _base(race: Race) -> Path:
    from llmkit import origin

    found = origin.model(race.model)
    return (found.ready or found.fetch()).path


def work(race: Race, laid: Sequence[Mapping[str, Any]]) -> int:
    """What the counted steps get done: pairs (ORPO), or tokens that bear loss (SFT)."""
    counted = laid[WARM_UP * race.batch :]
    if race.objective == "orpo":
        return len(counted)
    return sum(label >= 0 for row in counted for label in row["labels"][1:])


# --- the sides


def llmkit(race: Race, folder: Path, options: Mapping[str, Any]) -> None:
    """What the finetune step has its training process do."""
    from llmkit import progress
    from llmkit.steps import finetune

    config = finetune.Config(
        objective=race.objective,
        template=race.template,
        lora=LORA,
        lr=LR,
        beta=BETA,
        max_steps=race.steps,
        batch_size=race.batch,
        max_length=MAX_LENGTH,
        checkpoint_every=race.steps,
        precision=race.precision,
        seed=SEED,
        **options,
    )
    job = {
        "config": config.model_dump(mode="json"),
        "dataset": str(folder),
        "base": str(_base(race)),
        "base_ref": "",
        "init": None,
    }
    with progress.track("training", total=None) as bar:
        finetune.work({**job, "out": tempfile.mkdtemp(dir=folder)}, bar)


def trl(race: Race, folder: Path, options: Mapping[str, Any]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = _base(race)
    weights = torch.float32 if race.precision == "fp32" else getattr(torch, options["weights"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=weights, attn_implementation=options["attention"])
    torch.manual_seed(SEED)
    lora = LoraConfig(
        r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, lora)
    laid = json.loads((folder / "laid.json").read_text("utf-8"))
    arguments = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": race.batch,
        "max_steps": race.steps,
        "learning_rate": LR,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(0.1 * race.steps),
        "seed": SEED,
        "use_cpu": True,
        "bf16": race.precision == "bf16" and options["autocast"],
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        **options.get("arguments", {}),
    }
    trainer = {"orpo": _trl_orpo, "sft": _trl_sft}[race.objective]
    trainer(adapted, laid, AutoTokenizer.from_pretrained(base), arguments).train()


def _trl_orpo(model: Any, laid: list[dict[str, Any]], tokenizer: Any, arguments: dict[str, Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Tokenized(list[dict[str, Any]]):
        def map(self, *_: Any, **__: Any) -> "Tokenized":
            """It is tokenized already, and TRL would do it in another way."""
            return self

    config = ORPOConfig(**arguments, beta=BETA, max_length=MAX_LENGTH)
    return ORPOTrainer(model=model, args=config, train_dataset=Tokenized(laid), processing_class=tokenizer)


def _trl_sft(model: Any, laid: list[dict[str, Any]], tokenizer: Any, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(laid), processing_class=tokenizer)


# --- the head alone


HEAD_ROWS, HEAD_TOKENS = 4, 512


def head(race: Race, precision: str) -> dict[str, int]:
    """Peak bytes of Gemma's loss and its gradient at 4 × 512 positions, beyond its weight and the hidden states."""
    import torch

    from llmkit.engine import loading, loss

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # as `lora.attach` leaves a frozen head
    # Copied: what lies mapped in the file would count once it is read.
    weight = loading.read_tensor(_base(race), "lm_head.weight", "model.embed_tokens.weight").to(dtype, copy=True)
    hidden = torch.randn(HEAD_ROWS * HEAD_TOKENS, weight.shape[1], requires_grad=True)
    targets = torch.randint(len(weight), (len(hidden),))
    gauge = Gauge()
    gauge.start()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        log_probs = loss.log_probs(loss.Head(weight, None, 1.0, None), hidden, targets)
    torch.autograd.backward(-log_probs.mean())
    return {"peak": gauge.peak(), "full": hidden.shape[0] * len(weight) * 4}


# --- running


def run(side: str, race: Race, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """One job in a process of its own."""
    job = json.dumps({"side": side, "race": asdict(race), "folder": str(folder), "options": dict(options)})
    done = subprocess.run([sys.executable, __file__, "--job", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {race.name}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _job(side: str, race: Mapping[str, Any], folder: str, options: Mapping[str, Any]) -> None:
    found: dict[str, Any] = {}
    if side == "prepare":
        prepare(Race(**race), Path(folder))
    elif side == "head":
        found = head(Race(**race), options["precision"])
    else:
        found = watched()
        {"trl": trl, "llmkit": llmkit}[side](Race(**race), Path(folder), options)
    print(json.dumps(found))


def _sides(race: Race) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Name → the function that runs it, and its options."""
    ours = {"nll_on": "full"} if race.objective == "orpo" else {}
    return {"llmkit": ("llmkit", ours), **{name: ("trl", options) for name, options in TRL[race.objective].items()}}


def compare(race: Race, folder: Path) -> None:
    """Print each side's speed and memory, and our ratios to TRL's."""
    run("prepare", race, folder, {})
    laid = json.loads((folder / "laid.json").read_text("utf-8"))
    sides = _sides(race)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(ROUNDS if race.bar else 1):
        for name, (function, options) in sides.items():
            runs[name].append(run(function, race, folder, options))
    done = work(race, laid)
    rates = {name: done / min(one["ends"][-1] - one["ends"][WARM_UP - 1] for one in found) for name, found in runs.items()}
    peaks = {name: max(one["peak"] for one in found) for name, found in runs.items()}
    unit = "pairs/s" if race.objective == "orpo" else "loss tokens/s"
    for name in sides:
        line = f"{race.name:<24} {name:<17} {rates[name]:>7.2f} {unit:<13} {peaks[name] / 1e6:>5.0f} MB"
        print(line if name == "llmkit" else f"{line}   {_against(race, name, rates, peaks)}", flush=True)


def _against(race: Race, name: str, rates: Mapping[str, float], peaks: Mapping[str, int]) -> str:
    bar = race.bar if name == "trl" else None  # what is rougher than we are has no bar
    speed, memory = rates["llmkit"] / rates[name], peaks["llmkit"] / peaks[name]
    text = f"llmkit: {speed:.2f} × the speed{_bar(bar, bar is None or speed >= bar)}"
    return f"{text}, {memory:.2f} × the memory{_bar(MEMORY_BAR if bar else None, memory <= MEMORY_BAR)}"


def _bar(bar: float | None, is_met: bool) -> str:
    return "" if bar is None else f" (bar {bar:g}{'' if is_met else ': MISSED'})"


def overlay(race: Race, folder: Path) -> None:
    """Print the largest gap between the sides' losses, step by step."""
    run("prepare", race, folder, {})
    sides = _sides(race)
    losses = {name: run(sides[name][0], race, folder, sides[name][1])["losses"] for name in ("llmkit", "trl")}
    gap = max(abs(ours - theirs) for ours, theirs in zip(losses["llmkit"], losses["trl"], strict=True))
    first, last = losses["llmkit"][0], losses["llmkit"][-1]
    verdict = _bar(LARGEST_GAP, gap <= LARGEST_GAP)
    print(f"{race.name:<24} {race.steps} steps, loss {first:.3f} → {last:.3f}: largest gap {gap:.1e}{verdict}", flush=True)


def logits(folder: Path) -> None:
    """Print what the head needs at most, as a share of the full logits in fp32."""
    for precision in ("bf16", "fp32"):
        found = run("head", RACES[0], folder, {"precision": precision})
        share = found["peak"] / found["full"]
        text = f"{found['peak'] / 1e6:.0f} MB of {found['full'] / 1e6:.0f}: {share:.3f}{_bar(LOGITS_BAR, share <= LOGITS_BAR)}"
        print(f"{'gemma head, ' + precision:<24} {HEAD_ROWS} × {HEAD_TOKENS} tokens, {text}", flush=True)


def main(wanted: Sequence[str]) -> None:
    tasks: dict[str, Callable[[Path], None]] = {"head": logits}
    tasks |= {race.name: partial(compare, race) for race in RACES}
    tasks |= {race.name: partial(overlay, race) for race in CURVES}
    for name, task in tasks.items():
        if not wanted or name in wanted:
            with tempfile.TemporaryDirectory() as folder:
                task(Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        _job(**json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
