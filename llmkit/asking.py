"""Puts many conversations to a runtime, several at once, and keeps each answer as it comes. Knows threads; no runtime."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from hashlib import sha256

from llmkit import progress
from llmkit.answers import Answer, Store

Message = Mapping[str, str]
Ask = Callable[[Sequence[Message], str], Answer]


def ask_all(
    ask: Ask,
    conversations: Sequence[Sequence[Message]],
    *,
    keys: Sequence[str],
    store: Store | None,
    bar: progress.Bar | None,
    parallel: int,
) -> list[Answer]:
    """`ask(conversation, key)` for each that the store does not hold, `parallel` at once; answers in the conversations' order.

    An answer goes into the store when it comes, a failed one never: it is asked again. The `seconds` of all add up to
    the time that passed. What `ask` raises ends it all; calls under way then are left to end by themselves.
    """
    found: dict[int, Answer] = {}
    for index, (key, _) in enumerate(zip(keys, conversations, strict=True)):
        if store is not None and (kept := store.get(key)) is not None and not kept.failure:
            found[index] = kept
    if bar and found:
        bar.advance(len(found))
    waiting = [index for index in range(len(conversations)) if index not in found]
    last = time.perf_counter()
    pool = ThreadPoolExecutor(max(1, min(parallel, len(waiting))))
    try:
        asked: dict[Future[Answer], int] = {pool.submit(ask, conversations[index], keys[index]): index for index in waiting}
        for done in as_completed(asked):
            index, now = asked[done], time.perf_counter()
            found[index] = replace(done.result(), seconds=now - last)
            last = now
            if store is not None and not found[index].failure:
                store.put({keys[index]: found[index]})
            if bar:
                bar.advance()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [found[index] for index in range(len(conversations))]


def seed_of(key: str, *, seed: int) -> int:
    """What seeds the sampling of the answer with this key: 31 bits, the same in any order, another for each turn."""
    return int.from_bytes(sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
