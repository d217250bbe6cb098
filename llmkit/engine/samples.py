"""Answers a few fixed prompts as training goes, so that a person can read what the loss cannot tell. Knows callbacks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from llmkit.answers import Decoding
from llmkit.engine.generate import answer
from llmkit.engine.loss import speaking
from llmkit.engine.templates import ChatTemplate, Message

MAX_NEW_TOKENS = 64


class Sampler(TrainerCallback):
    """Appends {step, question, answer} lines to `out`: before the first step, and whenever the run is validated."""

    def __init__(
        self, out: Path, prompts: Sequence[Sequence[Message]], tokenizer: Any, template: ChatTemplate, *, bf16: bool
    ) -> None:
        self._out = out
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._template = template
        self._bf16 = bf16

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self._prompts or not state.is_world_process_zero:
            return
        # Lines from after the checkpoint that this run goes on from are written again.
        done = range(state.global_step + 1) if state.global_step else ()
        self._out.write_text("".join(line for line in self._lines() if json.loads(line)["step"] in done), "utf-8")
        if state.global_step == 0:
            self._answer(given["model"], state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self._prompts and state.is_world_process_zero:
            self._answer(given["model"], state.global_step)

    def _lines(self) -> list[str]:
        try:
            with self._out.open(encoding="utf-8", newline="\n") as stream:  # an answer may hold line ends of other kinds
                return [line for line in stream if line.endswith("}\n")]
        except FileNotFoundError:
            return []

    def _answer(self, model: Any, step: int) -> None:
        model.eval()
        with speaking(model), torch.autocast(model.device.type, torch.bfloat16, enabled=self._bf16):
            found = answer(model, self._tokenizer, self._prompts, template=self._template, decoding=Decoding(MAX_NEW_TOKENS))
        model.train()
        with self._out.open("a", encoding="utf-8") as stream:
            for prompt, one in zip(self._prompts, found.items, strict=True):
                line = {"step": step, "question": prompt[-1]["content"], "answer": one.text}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
