"""`llmkit chat`: a person or a pipe on one side, one speaker or two on the other. Knows the course of a dialogue and the three
streams; nothing of artifacts or runtimes.

At a terminal Ctrl-C stops an answer, and its exchange is as if it had not been: half an answer in the history would teach the
model to stop halfway. From a pipe every line is a message and nothing a command. stdout carries answers, stderr talk.
"""

import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from llmkit import telling
from llmkit.errors import UsageError
from llmkit.serve.chat import params
from llmkit.serve.chat.input import Piped, Typed
from llmkit.serve.chat.saving import save
from llmkit.serve.chat.screen import NARROWEST, Columns, calm, sound
from llmkit.serve.chat.talk import Asked, Heard, Talk, listen
from llmkit.serve.speaker import Speaker, Wish

_HELP = """\
  /system [TEXT]         show the system prompt, or set it; /system - clears it
  /reset                 forget what was said; the system prompt stays
  /save FILE             add this dialogue to a file that `llmkit clean` reads
  /params [NAME=VALUE …] show the settings of the answers, or change them
  /help                  this
  /quit                  leave, as Ctrl-D does
  A line that ends in \\ goes on in the next one; so does a block in triple quotes.
  A message that starts with / is written with //. Ctrl-C stops an answer."""
_UNSEEN = re.compile(r"[\x7f-\x9f]")  # control characters that json.dumps lets through


@dataclass
class Answer:
    """What one speaker said. `first`: seconds to its first piece; `seconds`: to its last; `tokens_at_first`: in that piece."""

    text: str = ""
    tokens: int = 0
    finish: str = ""
    first: float = 0.0
    seconds: float = 0.0
    tokens_at_first: int = 0

    def add(self, heard: Heard, started: float) -> None:
        if not self.seconds:
            self.first, self.tokens_at_first = heard.at - started, heard.piece.tokens
        self.text += sound(heard.piece.text)
        self.tokens += heard.piece.tokens
        self.finish = heard.piece.finish or self.finish
        self.seconds = heard.at - started

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first piece: reading the prompt is no part of it."""
        spent = self.seconds - self.first
        return (self.tokens - self.tokens_at_first) / spent if spent > 0 else None


def chat(speakers: Sequence[Speaker], wish: Wish, *, system: str = "", as_json: bool = False, quiet: bool = False) -> None:
    """Talk until the input ends or /quit, with one speaker or with two that are asked the same.

    Args:
        speakers: each keeps its own history.
        wish: how to answer, until /params changes it.
        system: the system prompt to begin with.
        as_json: one object per exchange on stdout in place of the answer's text.
        quiet: neither a greeting nor the speed of each answer.

    Raises:
        DataError: from a pipe, a message that no answer fits beside; at a terminal it is told, and the dialogue goes on.
        MachineError: a runtime failed.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 is no reason to fail
    names = _names(speakers)
    talks = [Talk(speaker, name=name, system=sound(system)) for speaker, name in zip(speakers, names, strict=True)]
    _Chat(talks, wish, as_json=as_json, quiet=quiet).run()


def _names(speakers: Sequence[Speaker]) -> list[str]:
    names = [calm(speaker.name) for speaker in speakers]
    return [f"{name} ({number})" for number, name in enumerate(names, 1)] if len(set(names)) < len(names) else names


@dataclass
class _Chat:
    talks: Sequence[Talk]
    wish: Wish
    as_json: bool
    quiet: bool
    typed: bool = field(default_factory=lambda: sys.stdin.isatty())  # noqa: PLW0108 - of the stream there is at that time

    def run(self) -> None:
        self._greet()
        if not self.typed:
            reader = Piped(sys.stdin)
            while (text := _next(reader)) is not None:
                if text.strip():
                    self._exchange(text)
            return
        typing = Typed(drawn=sys.stdout.isatty() and not self.as_json)
        going = True
        while going:
            try:
                text = _next(typing)
                going = text is not None and self._react(text)
            except KeyboardInterrupt:
                _tell("\nCtrl-D or /quit leaves")
            except UsageError as error:
                _tell(telling.lines(error))
        if text is None:
            _tell("")

    def _greet(self) -> None:
        if self.quiet:
            return
        for talk in self.talks:
            _tell(f"{talk.name}: {calm(talk.speaker.runtime)}, a context of {talk.speaker.context} tokens")
        if self.typed:
            _tell("/help lists what can be typed besides messages; Ctrl-D leaves")

    def _react(self, text: str) -> bool:
        """A message or a command of a person; tells whether to go on."""
        if not text.strip():
            return True
        if not text.startswith("/") or text.startswith("//"):
            self._exchange(text.removeprefix("/"))
            return True
        name, *rest = text[1:].split(maxsplit=1) or [""]
        if name == "quit":
            return False
        command = _COMMANDS.get(name)
        if command is None:
            raise UsageError(
                "there is no such command", code="LK0870", where=f"/{name}", next="see /help; a message with / begins with //"
            )
        command(self, rest[0].strip() if rest else "")
        return True

    def _exchange(self, text: str) -> None:
        asked = [talk.ask(text, self.wish) for talk in self.talks]
        try:
            answers = self._answers(asked)
        except KeyboardInterrupt:
            if not self.typed:
                raise
            _tell("\nstopped; this question and the half answer are forgotten")
            return
        forgotten = [talk.keep(one, answer.text) for talk, one, answer in zip(self.talks, asked, answers, strict=True)]
        if self.as_json:
            print(_line(text, self.talks, answers, forgotten), flush=True)
        for talk, answer, count in zip(self.talks, answers, forgotten, strict=True):
            self._told_after(talk, answer, count)

    def _answers(self, asked: Sequence[Asked]) -> list[Answer]:
        width = shutil.get_terminal_size().columns
        drawable = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if len(self.talks) == 2 and drawable and width >= NARROWEST and not self.as_json:
            left, right = (talk.name for talk in self.talks)
            columns = Columns(_write, width=width, names=(left, right))
            return _hear(self.talks, asked, lambda one: columns.add(one.index, one.piece.text, last=bool(one.piece.finish)))
        answers = []
        for talk, one in zip(self.talks, asked, strict=True):
            show = _ignore if self.as_json else _flow
            if len(self.talks) > 1 and not self.as_json:
                _write(f"[{talk.name}]\n")
            answers += _hear([talk], [one], show)
            if not self.as_json and not answers[-1].text.endswith("\n"):
                _write("\n")
        return answers

    def _told_after(self, talk: Talk, answer: Answer, forgotten: int) -> None:
        who = f"{talk.name}: " if len(self.talks) > 1 else ""
        if answer.finish == "length":
            _tell(f"{who}cut off at {answer.tokens} tokens{_hint(self.wish, answer)}")
        if forgotten:
            _tell(f"{who}the context is full: the model no longer sees the oldest {forgotten} of the exchanges")
        if sys.stderr.isatty() and not self.as_json and not self.quiet:
            speed = "" if answer.speed is None else f", {answer.speed:.1f} tokens/s"
            _tell(_dimmed(f"{who}{answer.tokens} tokens{speed}, the first after {answer.first:.2f} s"))

    def system(self, text: str) -> None:
        if not text:
            _tell(calm(self.talks[0].system) or "no system prompt")
            return
        for talk in self.talks:
            talk.system = "" if text == "-" else text
        _tell("the system prompt is cleared" if text == "-" else "the system prompt is set, from the next message on")

    def reset(self, _: str) -> None:
        for talk in self.talks:
            talk.forget()
        _tell("forgotten; the system prompt stays" if self.talks[0].system else "forgotten")

    def save(self, place: str) -> None:
        if not place:
            raise UsageError("/save needs the name of a file", code="LK0870", next="such as /save chats.jsonl")
        dialogues = [one for talk in self.talks for one in talk.dialogues()]
        if not dialogues:
            raise UsageError("nothing was said yet", code="LK0870", where="/save")
        new = save(place, dialogues)
        _tell(
            f"{'saved to' if new else 'added to'} {calm(place)}: {len(dialogues)} dialogue{'s' if len(dialogues) > 1 else ''}"
        )

    def params(self, text: str) -> None:
        self.wish = params.changed(self.wish, text.split())
        _tell(params.shown(self.wish))

    def help(self, _: str) -> None:
        _tell(_HELP)


_COMMANDS: Mapping[str, Callable[[_Chat, str], None]] = {
    "system": _Chat.system,
    "reset": _Chat.reset,
    "save": _Chat.save,
    "params": _Chat.params,
    "help": _Chat.help,
}


def _next(reader: Typed | Piped) -> str | None:
    try:
        return reader.read()
    except EOFError:
        return None


def _hear(talks: Sequence[Talk], asked: Sequence[Asked], show: Callable[[Heard], None]) -> list[Answer]:
    answers = [Answer() for _ in talks]
    started = time.perf_counter()
    with closing(listen(talks, asked)) as pieces:
        for heard in pieces:
            answers[heard.index].add(heard, started)
            show(heard)
    return answers


def _line(text: str, talks: Sequence[Talk], answers: Sequence[Answer], forgotten: Sequence[int]) -> str:
    told = [
        {
            "name": talk.name,
            "text": answer.text,
            "tokens": answer.tokens,
            "finish": answer.finish,
            "seconds": round(answer.seconds, 3),
            "forgotten": count,
        }
        for talk, answer, count in zip(talks, answers, forgotten, strict=True)
    ]
    line = json.dumps({"message": text, "answers": told}, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _hint(wish: Wish, answer: Answer) -> str:
    return "; raise max_tokens for more" if wish.max_tokens and answer.tokens >= wish.max_tokens else ": the context is full"


def _dimmed(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def _flow(heard: Heard) -> None:
    _write(calm(heard.piece.text))


def _ignore(heard: Heard) -> None:
    pass


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
