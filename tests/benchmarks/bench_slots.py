"""Whether answering several prompts at once in llama.cpp is faster, and whether it says the same, in one run.

    python tests/benchmarks/bench_slots.py

SmolLM2 135M Instruct as f32, f16, q8_0 and q4_k_m: greedy answers to short English and Chinese questions, in turn with each
number of slots, on all processors, f32 with exact attention; the best of `ROUNDS`. `same`: texts that are those of one slot.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from llmkit import origin
from llmkit.answers import Answer, Decoding, key

ROUNDS = 3
SLOTS = (1, 2, 4)
TYPES = ("f32", "f16", "q8_0", "q4_k_m")
QUESTIONS = 24
DECODING = Decoding(max_new_tokens=32)


def main() -> None:
    from llmkit.engine import templates
    from llmkit.gguf import runtime
    from llmkit.gguf.convert import export_types

    found = origin.model("demo:smollm2-135m")
    model = (found.ready or found.fetch()).path
    questions = _questions()
    with tempfile.TemporaryDirectory() as name:
        paths = {kind: Path(name) / f"{kind}.gguf" for kind in TYPES}
        export_types(model, paths, template=templates.resolve("model", model).text, name="smollm2")
        for kind, path in paths.items():
            best, texts = dict.fromkeys(SLOTS, 0.0), {}
            for _ in range(ROUNDS):
                for slots in SLOTS:
                    answers = _answers(path, questions, slots, exact=kind == "f32")
                    speed = sum(one.tokens for one in answers) / sum(one.seconds for one in answers)
                    best[slots], texts[slots] = max(best[slots], speed), [one.text for one in answers]
            for slots in SLOTS:
                same = sum(one == other for one, other in zip(texts[slots], texts[1], strict=True))
                mark = "  (the default)" if slots == runtime.slots_for(path) else ""
                print(f"{kind:<7} {slots} slots {best[slots]:6.1f} tokens/s, {same}/{len(questions)} same{mark}", flush=True)


def _answers(path: Path, questions: Sequence[Sequence[dict[str, str]]], slots: int, *, exact: bool) -> list[Answer]:
    from llmkit.gguf.runtime import LlamaServer

    with LlamaServer(path, threads=os.cpu_count() or 1, context=512, slots=slots, exact_attention=exact) as server:
        return server.answer_many(questions, decoding=DECODING, keys=[key(one) for one in questions])


def _questions() -> list[list[dict[str, str]]]:
    found = origin.source("demo:chatterbot", languages=["en", "zh"])
    files = origin.files_of(found.ready or found.fetch())
    lines = [json.loads(line)["messages"] for file in files for line in file.read_text("utf-8").splitlines()]
    asked = [messages[:-1] for messages in lines if len(messages) > 1 and messages[-1]["role"] == "assistant"]
    return Random(0).sample(asked, QUESTIONS)


if __name__ == "__main__":
    main()
