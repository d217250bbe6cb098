"""How fast a Hugging Face model answers in batches beside one prompt at a time, and whether it says the same. One run.

    PYTHONPATH=. python tests/benchmarks/bench_generate.py [speed | types] [--model FOLDER] [--prompts 200]

speed: the demo's Gemma 3 270M in fp32, real Chinese and English questions, greedily, at most 48 tokens each: one at a time;
with transformers' own loop in batches of 32 by length; as llmkit's eval does it. A base model without a chat template goes on
to the limit nearly every time; a fine-tuned one (`--model`: a merge step's folder) stops early, row by row.
types: the share of texts that are the same one at a time and in batches, in fp32, bf16, int8 and nf4.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from llmkit import origin, progress

NEW_TOKENS = 48
PEER_BATCH = 32
SPEED_BAR = 3.0


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("part", nargs="?", choices=["speed", "types"])
    asked.add_argument("--model", type=Path)
    asked.add_argument("--prompts", type=int, default=200)
    given = asked.parse_args()
    progress.calm_libraries()
    folder = given.model or _demo()
    for name, part in {"speed": speed, "types": types}.items():
        if given.part in (None, name):
            part(folder, _questions(given.prompts))


def speed(folder: Path, prompts: Sequence[Any]) -> None:
    side = _Side(folder)
    side.ask(prompts[:2], 1)  # warm
    seconds, texts = {}, {}
    for name, run in {
        "one at a time": lambda: side.ask(prompts, 1),
        "transformers' loop": lambda: side.peer(prompts),
        "llmkit": lambda: side.ask(prompts, None),
    }.items():
        seconds[name], texts[name] = _timed(run)
        tokens = sum(len(ids) for ids in side.ids(texts[name]))
        print(f"{name:<20} {seconds[name]:7.1f} s {tokens / seconds[name]:7.1f} tokens/s", flush=True)
    same = _same(texts["one at a time"], texts["llmkit"])
    faster = seconds["one at a time"] / seconds["llmkit"]
    print(f"{faster:.1f} × as fast as one at a time (bar {SPEED_BAR:g}), {same} of {len(prompts)} texts the same", flush=True)


def types(folder: Path, prompts: Sequence[Any]) -> None:
    import torch

    from llmkit.engine import quantize

    with tempfile.TemporaryDirectory() as name:
        for kind in ("fp32", "bf16", "int8", "nf4"):
            place, dtype = folder, torch.bfloat16 if kind == "bf16" else torch.float32
            if kind in ("int8", "nf4"):
                place = Path(name) / kind
                place.mkdir()
                quantize.quantize(folder, place, quantize.Settings(8 if kind == "int8" else 4))
            side = _Side(place, dtype=dtype, tokenizer=folder)
            alone, found = side.ask(prompts, 1), {size: side.ask(prompts, size) for size in (8, None)}
            shares = ", ".join(f"{size or 'automatic'}: {_same(alone, one)}" for size, one in found.items())
            print(f"{kind}: of {len(prompts)} texts the same as one at a time, by batch size: {shares}", flush=True)


class _Side:
    def __init__(self, folder: Path, *, dtype: Any = None, tokenizer: Path | None = None) -> None:
        import torch

        from llmkit.engine import generate, loading, templates
        from llmkit.errors import UsageError

        self._tokenizer = loading.load_tokenizer(tokenizer or folder)
        self._model = loading.load_model(folder, dtype=dtype or torch.float32)
        try:
            self._template = templates.resolve("model", tokenizer or folder)
        except UsageError:  # the demo's Gemma is a base model
            self._template = templates.resolve("gemma", tokenizer or folder)
        self._stops = generate.stops(self._model, self._tokenizer, self._template)

    def ask(self, prompts: Sequence[Any], batch_size: int | None) -> list[str]:
        from llmkit.answers import Decoding
        from llmkit.engine import generate

        found = generate.answer(
            self._model,
            self._tokenizer,
            prompts,
            template=self._template,
            decoding=Decoding(NEW_TOKENS),
            batch_size=batch_size,
        )
        return [one.text for one in found.items]

    def peer(self, prompts: Sequence[Any]) -> list[str]:
        """What a good script does: sorted by length, left-padded, `model.generate`."""
        from llmkit.engine import templates

        texts = [templates.render(one, self._tokenizer, self._template, add_generation_prompt=True) for one in prompts]
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found = [""] * len(texts)
        self._tokenizer.padding_side = "left"
        for first in range(0, len(order), PEER_BATCH):
            batch = order[first : first + PEER_BATCH]
            inputs = self._tokenizer([texts[one] for one in batch], add_special_tokens=False, padding=True, return_tensors="pt")
            out = self._model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=self._stops, pad_token_id=self._stops[0]
            )
            new = self._tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, new, strict=True):
                found[index] = text
        return found

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found


def _timed(run: Callable[[], list[str]]) -> tuple[float, list[str]]:
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def _same(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def _questions(count: int) -> list[Any]:
    """The demo corpus's opening questions, Chinese and English alike, in an order that has nothing to do with their topics."""
    found = origin.source("demo:chatterbot", languages=["zh", "en"])
    lines = [line for file in origin.files_of(found.ready or found.fetch()) for line in file.read_text("utf-8").splitlines()]
    opening = {json.dumps(json.loads(line)["messages"][:1], ensure_ascii=False) for line in lines}
    questions = sorted(opening)
    Random(0).shuffle(questions)
    return [json.loads(one) for one in questions[:count]]


def _demo() -> Path:
    found = origin.model("demo:gemma-3-270m")
    return (found.ready or found.fetch()).path


if __name__ == "__main__":
    main()
