"""What quantization costs and saves on real models, in one run: size, decode speed, divergence, importance matrices.

    python tests/benchmarks/bench_types.py

Gemma 3 270M (base) as f32 and q8_0: bytes, tokens a second of greedy decoding in llama.cpp on all processors, in turn, the
best of `ROUNDS`. SmolLM2 135M Instruct in three types with and without an importance matrix: mean KL(model ‖ file) in nats over
the answers of held-out English dialogues; the matrix is measured on others.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from llmkit import origin

ROUNDS = 3
DECODED = 128  # tokens
SIZE_BAR, SPEED_BAR = 0.28, 1.8
GUIDED = ("q4_k_m", "iq4_xs", "q2_k")
MATRIX_TOKENS = 16_384
HELD_OUT = 40  # dialogues


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes_and_speeds(_ready("demo:gemma-3-270m"), folder)
        importance(_ready("demo:smollm2-135m"), folder)


def sizes_and_speeds(model: Path, folder: Path) -> None:
    from llmkit.gguf.convert import export_types

    paths = {kind: folder / f"{kind}.gguf" for kind in ("f32", "q8_0")}
    export_types(model, paths, template="", name="gemma")
    best = dict.fromkeys(paths, 0.0)
    for _ in range(ROUNDS):
        for kind, path in paths.items():
            best[kind] = max(best[kind], _decode(path))
    for kind, path in paths.items():
        print(f"gemma {kind:<6} {path.stat().st_size / 1e6:6.0f} MB {best[kind]:7.1f} tokens/s", flush=True)
    size = paths["q8_0"].stat().st_size / paths["f32"].stat().st_size
    print(
        f"q8_0 / f32: {size:.3f} of the size (bar {SIZE_BAR}), {best['q8_0'] / best['f32']:.2f} × the speed (bar {SPEED_BAR})"
    )


def importance(model: Path, folder: Path) -> None:
    from llmkit.engine import child, loading, mask, retention, templates
    from llmkit.engine import imatrix as measuring
    from llmkit.gguf import convert, imatrix

    tokenizer, template = loading.load_tokenizer(model), templates.resolve("model", model)
    records = _dialogues()
    samples = [mask.encode(record["messages"], tokenizer, template, last_only=True) for record in records[:HELD_OUT]]
    against, _ = child.run(retention.remember, model, samples, None, folder, title="", total=1)
    calibration = measuring.calibration(records[HELD_OUT:], tokenizer, template, max_tokens=MATRIX_TOKENS)
    shape = convert.Model.read(model)
    names = imatrix.measured(shape.architecture.tensors(shape.config))
    sums = child.run(measuring.collect, model, calibration, names, title="", total=len(calibration))
    matrix = imatrix.from_measured(sums, dataset="chatterbot")
    found: dict[str, dict[str, float]] = {kind: {} for kind in GUIDED}
    for label, used in (("plain", None), ("guided", matrix)):
        paths = {kind: folder / f"{label}-{kind}.gguf" for kind in GUIDED}
        convert.export_types(model, paths, template="", name="smollm2", imatrix=used)
        for kind, path in paths.items():
            found[kind][label] = _divergence(path, model, against)
    for kind, kl in found.items():
        print(f"smollm2 {kind:<7} KL {kl['plain']:.4f}, with an importance matrix {kl['guided']:.4f}", flush=True)


def _divergence(path: Path, model: Path, against: Any) -> float:
    from llmkit.engine import child, retention
    from llmkit.gguf import read

    weighed = child.run(retention.weigh, partial(read.state_dict, path), model, None, against, (), title="", total=1)
    assert weighed.kl is not None
    return float(weighed.kl)


def _decode(path: Path) -> float:
    """Tokens a second, the prompt's handful included."""
    from llmkit.gguf.runtime import LlamaServer

    with LlamaServer(path, threads=os.cpu_count() or 1, context=DECODED + 64) as server:
        ids = server.tokenize("Once upon a time", add_special=True, parse_special=False)
        server.complete(ids, max_tokens=8)
        started = time.perf_counter()
        answer = server.complete(ids, max_tokens=DECODED)
        return len(answer.tokens) / (time.perf_counter() - started)


def _dialogues() -> Sequence[Mapping[str, Any]]:
    """The demo corpus's English exchanges, in an order that has nothing to do with their topics."""
    found = origin.source("demo:chatterbot", languages=["en"])
    [file] = origin.files_of(found.ready or found.fetch())
    records = [{"id": str(number), **json.loads(line)} for number, line in enumerate(file.read_text("utf-8").splitlines())]
    answered = [record for record in records if len(record["messages"]) > 1 and record["messages"][-1]["role"] == "assistant"]
    Random(0).shuffle(answered)
    return answered


def _ready(name: str) -> Path:
    found = origin.model(name)
    return (found.ready or found.fetch()).path


if __name__ == "__main__":
    main()
