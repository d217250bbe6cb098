"""pass@k of each variant: problems as prompts, answers as programs, run in the sandbox. Joins what knows each of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import answers, problems, progress, sandbox
from llmkit.answers import Answer, Decoding
from llmkit.evaluation.settings import Code


class Coding:
    """The problems of one evaluation. `path`: a file or folder of them, None for those that ship with llmkit.

    Raises:
        DataError: a problem that is none.
    """

    def __init__(self, settings: Code, path: Path | None) -> None:
        from llmkit.metrics import program

        self._settings = settings
        self._problems = problems.load(path or problems.BUNDLED)[: settings.limit]
        asked = [(program.prompt(problem), turn) for problem in self._problems for turn in range(settings.samples)]
        self.prompts = [prompt for prompt, _ in asked]
        self.keys = [answers.key(prompt, turn=turn) for prompt, turn in asked]

    def decoding(self, seed: int) -> Decoding:
        """Greedy for one sample a problem; several would all be the same."""
        temperature = self._settings.temperature if self._settings.samples > 1 else 0.0
        return Decoding(self._settings.max_new_tokens, temperature, seed=seed)

    def report(self, name: str, given: Sequence[Answer]) -> dict[str, Any]:
        """pass@k and what else is known of the programs in a variant's answers, with 95 % intervals over the problems.

        Raises:
            MachineError: this system can hold no program in.
        """
        from llmkit.metrics import bootstrap, code, program

        size = self._settings.samples
        texts = {one: given[index * size : (index + 1) * size] for index, one in enumerate(self._problems)}
        programs = {one: [program.completion(answer.text, one) for answer in some] for one, some in texts.items()}
        attempts = [(one, text) for one, some in programs.items() for text in some]
        with progress.track(f"running {name}'s programs", total=len(attempts)) as bar:
            ends = []
            for end in sandbox.judge_many(attempts, workers=os.cpu_count() or 1):
                ends.append(end)
                bar.advance()
        outcomes = {one: ends[index * size : (index + 1) * size] for index, one in enumerate(self._problems)}
        tallies = code.tallies(outcomes, programs, ks=self._settings.k)
        intervals = bootstrap.intervals(list(tallies.values()))
        return {
            **code.report(outcomes, programs, ks=self._settings.k),
            "intervals": {metric: list(found) for metric, found in intervals.items()},
            "isolation": sandbox.isolation(),
        }


def check() -> None:
    """Refuse before any work where programs cannot be held in.

    Raises:
        MachineError: this system can hold no program in.
    """
    sandbox.isolation()
