"""Answers from a model behind an OpenAI-compatible API, `POST …/chat/completions`. Knows that API; no model and no metrics.

What may pass by itself (a time-out, a lost connection, 408, 425, 429, any 5xx, a body that is cut short or no answer) is asked
again with exponential back-off and jitter; then that one sample has failed. What will not pass (401, 404, a redirect, …) ends
it all. Nothing is taken from the environment but the key that the caller names, and a key goes to one host only.

Format: https://platform.openai.com/docs/api-reference/chat
"""

import email.utils
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from llmkit import asking, progress
from llmkit.answers import Answer, Decoding, Store
from llmkit.errors import MachineError, UsageError
from llmkit.http_call import Caller, LostError, Reply

Message = Mapping[str, str]
T = TypeVar("T")
_CALL = "/chat/completions"
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"  # OpenAI's own newer models refuse the one, other servers the other
_OK = 200
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds
_LONGEST_CALL = 86_400.0  # seconds; sockets refuse absurd ones
_PASSING = (408, 425, 429, *range(500, 600))
_LENGTH = (400, 413, 422)
_MOST_TOKENS = 1 << 31  # a count beyond any answer is none: sums of such leave the range of floats
# By these words the usual servers say that this one conversation has no answer, not that the request is wrong.
_SAMPLE_WORDS = ("context", "content_filter", "too long", "too large")
# A dead endpoint must not cost every sample its back-off: so many failures in a row for each request at once end it.
_OUTAGE = 4
_ADVICE = {
    401: "name the environment variable that holds the key",
    403: "name the environment variable that holds a key with access to this model",
    404: "check the URL, which often ends in /v1, and the model's name",
}


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers.

    `url`: the API's base such as `http://localhost:8000/v1`, a bare host, for which `/v1` is meant, or the whole address of
    `/chat/completions`; `model`: its name there, None for the first that is listed; `key`: the *name* of the environment
    variable that holds the API key; `timeout`: seconds that one request may take; `retries`: further tries after the first;
    `parallel`: requests at once.

    Raises:
        UsageError: a URL that is none or holds a password, or a number out of range.
    """

    url: str
    model: str | None = None
    key: str | None = None
    timeout: float = 120.0
    retries: int = 4
    parallel: int = 4

    def __post_init__(self) -> None:
        _address(self.url)
        if not 0 < self.timeout <= _LONGEST_CALL or self.retries < 0 or self.parallel < 1:
            raise UsageError(
                "an endpoint's time-out is up to a day, its retries 0 or more, its requests at once 1 or more", code="LK0703"
            )


def answer_many(
    endpoint: Endpoint,
    conversations: Sequence[Sequence[Message]],
    *,
    decoding: Decoding,
    keys: Sequence[str],
    store: Store | None = None,
    bar: progress.Bar | None = None,
) -> list[Answer]:
    """An answer to each conversation, in order; what the store holds is not asked again, and a failure is never stored.

    `tokens` is 0 where the endpoint does not count them; `log_probability` is None. Sampling is seeded by key.

    Raises:
        UsageError: beams, a key that is not there, or requests that the endpoint refuses: a wrong key, model or address.
        MachineError: no sample was answered, or so many in a row were not that the endpoint must be down.
    """
    if decoding.beams > 1:
        raise UsageError(
            "an endpoint does no beam search", code="LK0712", next="set beams to 1, or evaluate the Hugging Face model"
        )
    talk = _Talk(endpoint)

    def ask(messages: Sequence[Message], key: str) -> Answer:
        return talk.answer(messages, decoding, seed=asking.seed_of(key, seed=decoding.seed))

    try:
        found = asking.ask_all(ask, conversations, keys=keys, store=store, bar=bar, parallel=endpoint.parallel)
    finally:
        talk.stop()
    if found and all(one.failure for one in found):
        raise MachineError(f"none of {len(found)} samples was answered: {found[-1].failure}", code="LK0702", where=talk.shown)
    return found


class _PassingError(Exception):
    """What may go well the next time. `wait`: seconds that the endpoint asks for."""

    def __init__(self, why: str, *, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _RenamedError(Exception):
    """The endpoint knows the limit of an answer by its newer name."""


class _SampleError(Exception):
    """This sample gets no answer."""


class _Talk:
    """Questions to one endpoint, from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._address = _address(endpoint.url)
        self._key = _secret(endpoint.key)
        self._caller = Caller(self._address, timeout=endpoint.timeout)
        self._stopped = threading.Event()
        self._naming = threading.Lock()
        self._model = endpoint.model
        self._failed_in_a_row = 0
        self._limit = _LIMIT

    @property
    def shown(self) -> str:
        """The URL as messages show it: a query may hold a secret."""
        return self._address._replace(query="").geturl()

    def stop(self) -> None:
        """End the waits and the requests under way."""
        self._stopped.set()
        self._caller.stop()

    def answer(self, messages: Sequence[Message], decoding: Decoding, *, seed: int) -> Answer:
        """One answer, failed where all tries did; who asks takes its time."""
        body = {
            "model": self._named(),
            "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
            self._limit: decoding.max_new_tokens,
            "temperature": decoding.temperature,
            **({"top_p": decoding.top_p, "seed": seed} if decoding.temperature else {}),
        }
        try:
            return self._try("POST", self._address.path, body, _completion)
        except _RenamedError:
            self._limit = _NEW_LIMIT
            return self.answer(messages, decoding, seed=seed)
        except _SampleError as error:
            return Answer("", 0, stopped=False, seconds=0.0, failure=str(error))

    def _named(self) -> str:
        """The model asked for, else the first that the endpoint lists, looked up once."""
        with self._naming:
            if self._model is None:
                path = self._address.path.removesuffix(_CALL) + "/models"
                try:
                    self._model = self._try("GET", path, None, _first_model)
                except _SampleError as error:
                    raise MachineError(
                        f"the endpoint lists no model: {error}",
                        code="LK0702",
                        where=self.shown,
                        next="start it, or name its model: eval.endpoint.model",
                    ) from None
            return self._model

    def _try(self, method: str, path: str, body: Any, read: Callable[[Any], T]) -> T:
        """What `read` makes of the first reply that it can read.

        Raises:
            _SampleError: all tries failed, or none can go well.
            UsageError: the endpoint refuses such requests.
            MachineError: it has failed too often in a row.
        """
        for attempt in range(self._endpoint.retries + 1):
            try:
                found = read(self._once(method, path, body))
            except _PassingError as error:
                why = str(error)
                if attempt == self._endpoint.retries or self._stopped.wait(_wait(attempt, error.wait)):
                    break
            else:
                self._failed_in_a_row = 0
                return found
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _OUTAGE * self._endpoint.parallel:
            raise MachineError(
                f"the endpoint does not answer: {self._failed_in_a_row} samples in a row failed, the last: {why}",
                code="LK0702",
                where=self.shown,
                next="run again when it does: the answers that came are kept",
            )
        raise _SampleError(why)

    def _once(self, method: str, path: str, body: Any) -> Any:
        """The JSON of one reply."""
        key = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        headers = {"Content-Type": "application/json", "Accept": "application/json", **key}
        try:
            reply = self._caller.send(method, path, body, headers=headers)
        except LostError as error:
            raise _PassingError(_short(str(error))) from None
        if reply.status != _OK:
            if _LIMIT in (body or {}) and _NEW_LIMIT.encode() in reply.body:
                raise _RenamedError
            raise self._refusal(reply)
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            raise _PassingError("the answer is no JSON") from None

    def _refusal(self, reply: Reply) -> Exception:
        """What a status other than 200 means."""
        said = _said(reply.body)
        why = f"HTTP {reply.status} {reply.reason}".strip() + (f": {said}" if said else "")
        why = _short(why.replace(self._key, "…") if self._key else why)  # some repeat the key
        if reply.status in _PASSING:
            return _PassingError(why, wait=_retry_after(reply.headers.get("Retry-After")))
        words = reply.body.decode("utf-8", "replace").lower()
        if reply.status in _LENGTH and any(word in words for word in _SAMPLE_WORDS):
            return _SampleError(why)
        moved = reply.headers.get("Location") if reply.status in range(300, 400) else None
        if moved:
            why = f"it has moved to {_short(moved.partition('?')[0])}"
        advice = _ADVICE.get(reply.status, "")
        if reply.status == 401 and self._key:
            advice = f"it does not accept the key in {self._endpoint.key}"
        return UsageError(f"the endpoint refuses the request: {why}", code="LK0701", where=self.shown, next=advice)


def _address(url: str) -> SplitResult:
    """The whole address of a call."""
    try:
        found = urlsplit(url)
        whole = found.scheme in ("http", "https") and found.hostname and found.port != 0  # `port` raises where it is none
    except ValueError:
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or " " in url:
        shown = _short(url.rpartition("@")[2].partition("?")[0])
        raise UsageError(
            "this is no http or https URL", code="LK0703", where=shown, next="give one as http://localhost:8000/v1"
        )
    if "@" in found.netloc:
        advice = "put the key into an environment variable, and name that"
        raise UsageError("the URL holds a password", code="LK0703", where=found.hostname or "", next=advice)
    path = found.path.rstrip("/") or "/v1"
    return found._replace(path=path if path.endswith(_CALL) else path + _CALL, fragment="")


def _secret(variable: str | None) -> str:
    """The key in this environment variable; an empty one where none is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(
            "the environment variable named for the endpoint's key holds none", code="LK0703", where=_short(variable)
        )
    return key


def _completion(found: Any) -> Answer:
    """The answer in a chat completion."""
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text = message.get("content")
        if text is None:  # it refused, or all its tokens went into thoughts
            text = message.get("refusal") or ""
        tokens = (found.get("usage") or {}).get("completion_tokens")
        stopped = choice.get("finish_reason") != "length"
        # A lone surrogate, which JSON can hold, is no text.
        clean = text.encode("utf-8", "replace").decode()
    except (LookupError, TypeError, AttributeError):
        raise _PassingError("the answer is no chat completion") from None
    known = tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 < tokens <= _MOST_TOKENS else 0
    return Answer(clean, known, stopped=stopped, seconds=0.0)


def _first_model(found: Any) -> str:
    try:
        return str(found["data"][0]["id"])
    except (LookupError, TypeError):
        raise _PassingError("its list of models is empty or damaged") from None


def _said(body: bytes) -> str:
    """The endpoint's own words on what is wrong, wherever it puts them."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return str(found)


def _wait(attempt: int, asked_for: float) -> float:
    """Seconds until the next try: at least what the endpoint asks for, within bounds."""
    doubled = _FIRST_WAIT * 2.0 ** min(attempt, 10) * secrets.SystemRandom().uniform(0.5, 1.0)
    return min(max(doubled, asked_for), _LONGEST_WAIT)


def _retry_after(header: str | None) -> float:
    """Seconds, from a number of them or a date; 0 where it is neither."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return float(email.utils.parsedate_to_datetime(text).timestamp()) - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _short(text: str) -> str:
    """Foreign words on one line that can be printed."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[:1000]).split())
    return line if len(line) <= 200 else line[:199] + "…"
