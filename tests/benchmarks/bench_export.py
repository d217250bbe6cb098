"""How fast `export` writes GGUF beside llama.cpp's converter and quantizer, and in how much memory: random models, one run.

    PYTHONPATH=. python tests/benchmarks/bench_export.py          # llama.cpp's side needs what `make oracle` builds

A Llama of 1.2 GB and one of 3 GB in bf16, with SmolLM2's tokenizer. Each job is a process of its own, imports included, the
sides in turn; the best of `ROUNDS` counts. Ours is `convert.export_types` alone, as theirs is the converter alone: neither
loads or proves the file. q4_k_m is one pass of ours, and their converter and quantizer one after the other. Memory is the
largest sum of the resident sets of all of a job's processes, looked at 50 times a second. `cp` and its `sync` tell what the
disk can do: a further gigabyte is measured from the smaller model to the larger.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from tests.oracle import oracle

ROUNDS = 2
SIZES = (1.2, 3.0)  # GB in bf16
HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, VOCABULARY = 2048, 5632, 32, 4, 49152
SHARD_BYTES = 1e9
CONVERTER_BAR, CHAIN_BAR, GIGABYTE_BAR, MEMORY_BAR, GROWTH_BAR = 2.5, 1.2, 2.0, 0.5, 1.05
EXPORT = """
import sys
from pathlib import Path
from llmkit.gguf.convert import export
if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), type=sys.argv[3], template="", name="random")
"""


@dataclass(frozen=True)
class Cost:
    """`seconds`: the fastest round; `bytes`: the largest sum of resident sets of any."""

    seconds: float
    bytes: int


def main() -> None:
    from llmkit import origin

    lack = oracle.absent()
    if lack:
        print(f"{lack}; ours alone is timed")
    tokenizer = origin.model("demo:smollm2-135m")
    found = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        (folder / "export.py").write_text(EXPORT, "utf-8")
        for size in SIZES:
            model = folder / "model"
            write_model(model, size, (tokenizer.ready or tokenizer.fetch()).path)
            found[size] = race(model, folder, alone=bool(lack))
            report(size, found[size])
            shutil.rmtree(model)
    compare(*found.values())


def race(model: Path, folder: Path, *, alone: bool) -> dict[str, Cost]:
    """What each side costs, in turn."""
    f16, q4 = folder / "theirs-f16.gguf", folder / "theirs-q4.gguf"
    script = [sys.executable, str(folder / "export.py"), str(model), str(folder / "ours.gguf")]
    jobs: dict[str, Callable[[], Sequence[str]]] = {
        "cp": lambda: ["sh", "-c", f"cat {model}/*.safetensors > {folder}/copy && sync {folder}/copy"],
        "ours f16": lambda: [*script, "f16"],
        "ours q4_k_m": lambda: [*script, "q4_k_m"],
    }
    if not alone:
        jobs["theirs f16"] = lambda: oracle.conversion(model, f16, "f16")
        jobs["theirs q4_k_m"] = lambda: oracle.quantization(f16, q4, "q4_k_m")
    best: dict[str, Cost] = {}
    for _ in range(ROUNDS):
        for name, command in jobs.items():
            for file in ("ours.gguf", "copy", "theirs-q4.gguf"):
                (folder / file).unlink(missing_ok=True)
            cost = run(command())
            old = best.get(name, cost)
            best[name] = Cost(min(old.seconds, cost.seconds), max(old.bytes, cost.bytes))
    return best


def run(command: Sequence[str]) -> Cost:
    """A process and its children, watched."""
    largest = 0
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=oracle.environment()) as process,
    ):
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            largest = max(largest, resident(watched))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            sys.exit(log.read()[-2000:].decode("utf-8", "replace"))
    return Cost(seconds, largest)


def resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def report(size: float, costs: dict[str, Cost]) -> None:
    for name, cost in costs.items():
        print(f"{size} GB  {name:<14} {cost.seconds:7.2f} s {cost.bytes / 1e6:7.0f} MB", flush=True)


def compare(small: dict[str, Cost], large: dict[str, Cost]) -> None:
    f16, cp = ((large[name].seconds - small[name].seconds) / (SIZES[1] - SIZES[0]) for name in ("ours f16", "cp"))
    print(f"a further GB: f16 {f16:.2f} s, cp {cp:.2f} s: {f16 / cp:.2f} × (bar {GIGABYTE_BAR})")
    for name in ("ours f16", "ours q4_k_m"):
        growth = large[name].bytes / small[name].bytes
        print(f"{name}: peak memory 3 GB / 1.2 GB {growth:.2f} (bar {GROWTH_BAR})")
    for size, costs in zip(SIZES, (small, large), strict=True):
        if "theirs f16" not in costs:
            return
        theirs, quantizer = costs["theirs f16"], costs["theirs q4_k_m"]
        speed, memory = theirs.seconds / costs["ours f16"].seconds, costs["ours f16"].bytes / theirs.bytes
        print(f"{size} GB  f16: {speed:.2f} × the converter's speed (bar {CONVERTER_BAR}), {memory:.2f} × its memory", end="")
        print(f" (bar {MEMORY_BAR})")
        speed = (theirs.seconds + quantizer.seconds) / costs["ours q4_k_m"].seconds
        memory = costs["ours q4_k_m"].bytes / max(theirs.bytes, quantizer.bytes)
        print(
            f"{size} GB  q4_k_m: {speed:.2f} × converter and quantizer (bar {CHAIN_BAR}), {memory:.2f} × their memory", end=""
        )
        print(f" (bar {MEMORY_BAR})")


def write_model(folder: Path, size: float, tokenizer: Path) -> None:
    """A random Llama of about `size` GB in bf16, in shards."""
    folder.mkdir()
    head = HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (head * KEY_VALUE_HEADS, HIDDEN),
        "self_attn.v_proj": (head * KEY_VALUE_HEADS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    vocabulary = (VOCABULARY, HIDDEN)
    layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    layers = round((size * 1e9 - 4 * VOCABULARY * HIDDEN) / layer_bytes)
    names = {"model.embed_tokens": vocabulary, "model.norm": (HIDDEN,), "lm_head": vocabulary}
    names |= {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    for number, (name, shape) in enumerate(names.items(), 1):
        shard[f"{name}.weight"] = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        places[f"{name}.weight"] = f"part-{number:04}.safetensors"
        if sum(weight.nbytes for weight in shard.values()) > SHARD_BYTES or number == len(names):
            file = f"part-{number:04}.safetensors"
            places |= dict.fromkeys(shard, file)
            save_file(shard, folder / file, metadata={"format": "pt"})
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer / name, folder)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
