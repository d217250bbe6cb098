"""What a model said, how its tokens were chosen, and a file that keeps answers through a kill. Knows no model and no runtime.

A store holds JSON lines, `{"key", "answer"}` or `{"note", "value"}`, appended as answers are finished. A line that a kill
cut short is dropped when the store is opened again, and lines that are none of these are passed over.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    `temperature` 0 is greedy and makes `top_p` and `seed` moot; more than one of `beams` is beam search, which Hugging Face
    models alone can do.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One generated text, special tokens removed.

    `tokens`: how many were generated, an EOS among them; `stopped`: it ended by itself; `seconds`: its share of the time;
    `log_probability`: mean natural log-probability of its tokens as its runtime reports it, None where it does not;
    `failure`: why there is none, else empty.
    """

    text: str
    tokens: int
    stopped: bool
    seconds: float
    log_probability: float | None = None
    failure: str = ""


class Store:
    """Answers by key, on disk from the moment they are put.

    Opening it makes its folder. Raises OSError where that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, Answer] = {}
        self._notes: dict[str, Any] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = 0
        for line in content.splitlines(keepends=True):
            if line.endswith(b"\n"):
                whole += len(line)
                self._read(line)
        self._file = path.open("ab")
        if whole < len(content):  # else another process may have added to it just now
            self._file.truncate(whole)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Add answers in one write: all of a batch, or none, outlive a kill between two writes."""
        self._append({"key": key, "answer": asdict(answer)} for key, answer in answers.items())
        self._answers.update(answers)

    def noted(self, name: str) -> Any:
        """What `note` last kept under `name`, else None."""
        return self._notes.get(name)

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON value beside the answers, such as the batch size they were made with."""
        self._append([{"note": name, "value": value}])
        self._notes[name] = value

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(entry, ensure_ascii=True).encode() + b"\n" for entry in entries))
        self._file.flush()  # a kill leaves what the system has; only a power cut would want more

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if "note" in entry:
                self._notes[str(entry["note"])] = entry["value"]
            else:
                self._answers[str(entry["key"])] = _answer(entry["answer"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return


def _answer(found: Mapping[str, Any]) -> Answer:
    """Raises KeyError or TypeError where this is no answer."""
    values = {one.name: found[one.name] for one in fields(Answer)}
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            raise TypeError(name)
    return Answer(**values)


_KINDS: Mapping[str, Any] = {
    "text": str,
    "tokens": int,
    "stopped": bool,
    "seconds": int | float,
    "log_probability": int | float | None,
    "failure": str,
}


def key(messages: Sequence[Mapping[str, str]], *, turn: int = 0) -> str:
    """The key of a prompt's answer; `turn` numbers the answers to one and the same prompt."""
    said = [[message["role"], message["content"]] for message in messages]
    return sha256(json.dumps([said, turn], ensure_ascii=True).encode()).hexdigest()[:32]


def keys(conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
    """A key for each; the second time that a prompt is asked it gets another."""
    times: Counter[str] = Counter()
    found = []
    for messages in conversations:
        plain = key(messages)
        found.append(key(messages, turn=times[plain]))
        times[plain] += 1
    return found
