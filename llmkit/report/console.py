"""Draws progress on stderr: bars with an ETA on a terminal, plain lines elsewhere. Knows nothing of what is done."""

import sys
import time
from typing import Any

from llmkit import progress

# Where no one watches a bar, a line this often says that it moves.
SECONDS_BETWEEN_LINES = 15.0


class Plain:
    """One line when a bar opens, now and then while it moves, and when it closes."""

    def open(self, title: str, total: int | None) -> progress.Bar:
        return _PlainBar(title, total)

    def close(self, bar: progress.Bar) -> None:
        assert isinstance(bar, _PlainBar)
        bar.finish()

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _PlainBar:
    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total = title, total
        self._count, self._text = 0, ""
        self._said = -1
        self._started = self._told = time.monotonic()

    def advance(self, count: int = 1, text: str = "") -> None:
        self._count += count
        self._text = text or self._text
        if time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._tell()

    def finish(self) -> None:
        if self._count != self._said:
            self._tell()

    def _tell(self) -> None:
        self._told, self._said = time.monotonic(), self._count
        spent = self._told - self._started
        done = f"{self._count}/{self._total}" if self._total else f"{self._count}"
        left = ""
        if self._total and 0 < self._count < self._total:
            left = f", {spent / self._count * (self._total - self._count):.0f} s left"
        print(f"  {self._title} {done} {self._text} [{spent:.0f} s{left}]", file=sys.stderr, flush=True)


class Live:
    """rich's progress bars; notes are printed above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._open = 0

    def open(self, title: str, total: int | None) -> progress.Bar:
        if not self._open:
            self._progress.start()
        self._open += 1
        return _LiveBar(self._progress, self._progress.add_task(title, total=total, text=""))

    def close(self, bar: progress.Bar) -> None:
        self._open -= 1
        if not self._open:
            self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _LiveBar:
    def __init__(self, shown: Any, task: Any) -> None:
        self._shown, self._task = shown, task

    def advance(self, count: int = 1, text: str = "") -> None:
        extra = {"text": text} if text else {}
        self._shown.update(self._task, advance=count, **extra)


class Quiet(Plain):
    """Warnings and licences alone."""

    def open(self, title: str, total: int | None) -> progress.Bar:
        return _SilentBar()

    def close(self, bar: progress.Bar) -> None:
        pass

    def note(self, text: str) -> None:
        if text.startswith(("warning", "licence")):
            super().note(text)


class _SilentBar:
    def advance(self, count: int = 1, text: str = "") -> None:
        pass
