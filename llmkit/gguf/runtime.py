"""llama.cpp as a callable: loads a GGUF file in a child process and talks to it. Knows HTTP and processes; no HF.

llama.cpp can crash on a file, stall for minutes on busy cores and writes pages of log. So it runs in a child: every
call has a time limit, a dead or silent child becomes a MachineError with the tail of its log, and nothing is shown.
"""

import contextlib
import http.client
import json
import math
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from gguf import GGMLQuantizationType

from llmkit import asking, progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.errors import DataError, MachineError, UsageError
from llmkit.gguf import container
from llmkit.gguf.event_stream import BrokenError, EventStream, RefusedError

Message = Mapping[str, str]
_LOAD_SECONDS = 300.0
_CALL_SECONDS = 60.0
_TOKEN_SECONDS = 2.0  # per token of prompt and answer: far slower than any machine that can hold the model
_CHARACTER_SECONDS = 1e-4  # to tokenize one: ten times what it takes
_LOG_LINES = 8
_LOG_BYTES = 1 << 16
_SLOTS = 4
# Plain greedy or random choice among what temperature, then top-p leave, as Hugging Face and vLLM order them; nothing else.
_CHOICE = {"samplers": ["temperature", "top_p"], "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}


@dataclass(frozen=True)
class Generation:
    """One answer. `tokens`: its ids, the ending one left out where llama.cpp does; `stopped`: it ended by itself."""

    text: str
    tokens: list[int]
    stopped: bool


class LlamaServer:
    """A GGUF file loaded in llama.cpp; use it as a context manager.

    `context` is the number of tokens of prompt and answer each of the `slots` can hold. Answers do not depend on order: no
    prompt is cached. Several slots compute tokens together, which rounds in other ways: see `slots_for`.
    llama.cpp's attention rounds to fp16, which moves log-probabilities by about 5e-3; `exact_attention` has it compute in
    fp32. `adapter`: a GGUF LoRA to lay over the model. `reuse`: keep what was computed of a prompt for those that begin alike;
    a request still says whether it wants it, for the last bits of its logits then follow from what was asked before.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        context: int,
        slots: int = 1,
        exact_attention: bool = False,
        adapter: Path | None = None,
        reuse: bool = False,
    ) -> None:
        self._path = path
        self._adapter = adapter
        self._slots = slots
        self._context = context
        self._key = secrets.token_hex(16)  # the port is open to every user of this machine
        self._settings = {
            "path": str(path),
            "threads": threads,
            "context": context,
            "slots": slots,
            "exact_attention": exact_attention,
            "adapter": str(adapter) if adapter else None,
            "reuse": reuse,
            "key": self._key,
        }
        self._lines: queue.Queue[str] = queue.Queue()
        self._child: subprocess.Popen[str] | None = None
        self._address = ("", 0)

    def __enter__(self) -> Self:
        """Raises DataError where a file is missing and MachineError where llama.cpp does not load it."""
        for path in filter(None, (self._path, self._adapter)):
            if not path.is_file():
                raise DataError("no such GGUF file", code="LK0113", where=str(path))
        self._log = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "llmkit.gguf.runtime_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **progress.CALM_THREADS},
        )
        threading.Thread(target=self._listen, args=(self._child.stdout,), daemon=True).start()
        try:
            address = urlsplit(str(self._ask(json.dumps(self._settings), seconds=_LOAD_SECONDS)["address"]))
        except BaseException:
            self._stop()
            raise
        self._address = (address.hostname or "", address.port or 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    @property
    def alive(self) -> bool:
        """Whether llama.cpp still runs."""
        return (child := self._child) is not None and child.poll() is None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. `add_special`: put BOS/EOS where the file says so; `parse_special`: read special tokens in the text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        seconds = _CALL_SECONDS + _CHARACTER_SECONDS * len(text)
        return [int(index) for index in self._post("/tokenize", body, seconds=seconds)["tokens"]]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the embedded template makes of `messages`, ready for an answer.

        llama.cpp leaves out a leading BOS where the file tells it to add one: tokenize with `add_special=True`.

        Raises:
            DataError: the template refuses these messages.
        """
        status, answer = self._request("/apply-template", {"messages": [dict(message) for message in messages]})
        if status == http.client.OK:
            return str(answer["prompt"])
        why = (_message(answer).splitlines() or ["no reason given"])[-1]
        raise DataError(f"the chat template refuses these messages: {why}", code="LK0317", where=str(self._path))

    def chat(self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0) -> Generation:
        """The answer to `messages`, raw text: nothing is parsed out of it and special tokens are not shown."""
        return self.complete(self.render(messages), max_tokens=max_tokens, temperature=temperature)

    def answer_many(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        decoding: Decoding,
        keys: Sequence[str],
        store: Store | None = None,
        bar: progress.Bar | None = None,
    ) -> list[Answer]:
        """An answer to each conversation, in order, as many at once as there are slots.

        What the store holds is not asked again. A prompt that does not fit the context is a failed answer, which is not
        stored. Sampling is seeded by key. `log_probability` is of the model's own distribution, before temperature and top-p,
        over the tokens that llama.cpp reports: not those that end inside a character.

        Raises:
            UsageError: beam search, which llama.cpp does not have.
            DataError: the template refuses a conversation.
            MachineError: llama.cpp failed, or gave no answer in time.
        """
        if decoding.beams > 1:
            raise UsageError("llama.cpp does no beam search", code="LK0712", where=str(self._path), next="set beams to 1")

        def ask(messages: Sequence[Message], key: str) -> Answer:
            return self._answer(messages, decoding, seed=asking.seed_of(key, seed=decoding.seed))

        return asking.ask_all(ask, conversations, keys=keys, store=store, bar=bar, parallel=self._slots)

    def _answer(self, messages: Sequence[Message], decoding: Decoding, *, seed: int) -> Answer:
        prompt = self.render(messages)
        choice = sampling(temperature=decoding.temperature, top_p=decoding.top_p, seed=seed)
        body = {**choice, "n_predict": decoding.max_new_tokens, "n_probs": 1}
        try:
            found = self._complete(prompt, body, decoding.max_new_tokens)
        except DataError as error:
            return Answer("", 0, stopped=False, seconds=0.0, failure=error.what)
        # A damaged file's are no numbers, which JSON writes as null.
        told = [
            math.nan if entry["logprob"] is None else float(entry["logprob"])
            for entry in found.get("completion_probabilities", ())
        ]
        return Answer(
            str(found["content"]).encode("utf-8", "replace").decode(),
            int(found["tokens_predicted"]),
            stopped=found["stop_type"] == "eos",
            seconds=0.0,
            log_probability=sum(told) / len(told) if told else None,
        )

    def complete(self, prompt: str | Sequence[int], *, max_tokens: int, temperature: float = 0.0) -> Generation:
        """What follows `prompt`: token ids as they are, or text, to which the file's BOS is added. Temperature 0 is greedy.

        Raises:
            DataError: the prompt does not fit the context.
            MachineError: llama.cpp failed, or gave no answer in time.
        """
        body = {"max_tokens": max_tokens, "temperature": temperature, "seed": 0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        answer = self._complete(prompt, {**body, "n_predict": max_tokens, "return_tokens": True}, max_tokens)
        return Generation(str(answer["content"]), [int(token) for token in answer["tokens"]], answer["stop_type"] == "eos")

    def stream(self, prompt: str, body: Mapping[str, Any], *, reuse: bool = False) -> EventStream:
        """What follows `prompt`, to which the file's BOS is added, event by event, while it is being made.

        Events hold `content` (whole characters; an answer cut inside one ends on U+FFFD), `tokens_predicted` so far, and in
        the last one `stop_type`; those with `prompt_progress` tell of the prompt. `body`: see `sampling`, and `n_predict`, -1
        for as long as the context allows. The event stream's own errors are for `stream_error`.
        """
        whole = {**body, "prompt": prompt, "stream": True, "return_progress": True, "cache_prompt": reuse}
        return EventStream(self._address, "/completion", whole, self._headers)

    def stream_error(self, error: RefusedError | BrokenError) -> DataError | MachineError:
        """What ended a stream, as the user should read it. A broken one ends the child: nobody else may wait for it."""
        if isinstance(error, RefusedError) and error.status < http.client.INTERNAL_SERVER_ERROR:
            return DataError(f"llama.cpp refuses the request: {_message(error.answer)}", code="LK0622", where=str(self._path))
        if isinstance(error, RefusedError):
            return self._failure(f"llama.cpp failed: {_message(error.answer)}")
        self._kill()
        return self._failure("llama.cpp ended unexpectedly")

    def next_log_probabilities(self, prompt: str | Sequence[int], *, top: int) -> dict[int, float]:
        """The natural log-probabilities of the `top` likeliest next tokens, before any sampling."""
        # llama.cpp reports none with an answer that ends or is half a character: make it answer with a letter.
        letter = self.tokenize("a", add_special=False, parse_special=False)[-1]
        answer = self._complete(prompt, {"n_predict": 1, "temperature": 0.0, "n_probs": top, "logit_bias": [[letter, 1e4]]}, 1)
        return {int(entry["id"]): float(entry["logprob"]) for entry in answer["completion_probabilities"][0]["top_logprobs"]}

    def stops_at(self, token: int) -> bool:
        """Whether an answer ends where the model says `token`."""
        # Were it no end, the answer would go on to a second one.
        body = {"n_predict": 2, "temperature": 0.0, "logit_bias": [[token, 1e4]]}
        return bool(self._complete([token], body, 2)["stop_type"] == "eos")

    @property
    def peak_memory_bytes(self) -> int:
        """The child's largest resident size so far; 0 where the system does not tell."""
        return int(self._ask("peak", seconds=_CALL_SECONDS)["peak_memory_bytes"])

    def _complete(self, prompt: str | Sequence[int], body: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        text = prompt if isinstance(prompt, str) else list(prompt)
        # A token has at least one byte of a text prompt; the context bounds both.
        tokens = min(len(text), self._context) + max_tokens
        seconds = _CALL_SECONDS + _TOKEN_SECONDS * tokens
        return self._post("/completion", {**body, "prompt": text, "cache_prompt": False}, seconds=seconds)

    def _post(self, path: str, body: dict[str, Any], *, seconds: float = _CALL_SECONDS) -> dict[str, Any]:
        status, answer = self._request(path, body, seconds=seconds)
        if status == http.client.OK:
            return answer
        if status < http.client.INTERNAL_SERVER_ERROR:
            raise DataError(f"llama.cpp refuses the request: {_message(answer)}", code="LK0622", where=str(self._path))
        raise self._failure(f"llama.cpp failed: {_message(answer)}")

    def _request(self, path: str, body: dict[str, Any], *, seconds: float = _CALL_SECONDS) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json", **self._headers}
        connection = http.client.HTTPConnection(*self._address, timeout=seconds)
        started = time.monotonic()
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            waited = time.monotonic() - started
            self._kill()
            late = isinstance(error, TimeoutError)
            what = f"gave no answer in {waited:.0f} s" if late else "ended unexpectedly"
            raise self._failure(f"llama.cpp {what}") from None
        finally:
            connection.close()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    def _ask(self, line: str, *, seconds: float) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
            answer = self._lines.get(timeout=seconds)
            if not answer:
                raise BrokenPipeError
            return dict(json.loads(answer))
        except (queue.Empty, OSError, ValueError):
            self._kill()
            raise self._failure("llama.cpp does not load or serve this file") from None

    def _listen(self, stream: Iterable[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    def _failure(self, what: str) -> MachineError:
        lines = []
        with contextlib.suppress(ValueError, OSError):  # closed: the server was ended under a request
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_BYTES))
            lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        tail = "\n".join(lines[-_LOG_LINES:])
        return MachineError(what, code="LK0621", where=str(self._path), next=f"the end of its log:\n{tail}" if tail else "")

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _stop(self) -> None:
        """Close stdin, which ends the child; kill it where that does not."""
        child = self._child
        if child is None:
            return
        with contextlib.suppress(OSError):
            assert child.stdin is not None
            child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._kill()
        self._log.close()
        self._child = None


def sampling(*, temperature: float, top_p: float, seed: int | None) -> dict[str, Any]:
    """How a request says that tokens are to be chosen; `seed` None: another each time."""
    return {**_CHOICE, "temperature": temperature, "top_p": top_p, "seed": -1 if seed is None else seed}


def room(prompt: Sequence[Message], max_tokens: int) -> int:
    """Tokens that a prompt and its answer take at most: none is shorter than a byte, and a template adds a few a message."""
    return sum(len(message["content"].encode()) + 32 for message in prompt) + max_tokens + 64


def slots_for(path: Path) -> int:
    """How many answers to make at once from this model's file.

    Several for fp32 weights: reading them takes most of the time, and it is shared. One for any smaller type: its matrix
    products round what goes into them, so that tokens computed together can change texts, and are no faster on a laptop.

    Raises:
        DataError: the file is no GGUF file.
    """
    return _SLOTS if is_exact(path) else 1


def is_exact(path: Path) -> bool:
    """Whether all of a file's matrices are fp32, so that computing with them rounds nothing. Raises as `slots_for`."""
    return all(
        one.type == GGMLQuantizationType.F32
        for part in container.open_split(path)
        for one in part.tensors
        if len(one.shape) > 1
    )


def trained_context(path: Path) -> int | None:
    """Tokens that the model of a file was trained to see at once; None where it does not say. Raises as `slots_for`."""
    metadata = container.open_split(path)[0].metadata
    found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return found if isinstance(found, int) and found > 0 else None


def _message(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
