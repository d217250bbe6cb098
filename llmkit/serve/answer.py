"""An answer as it comes, cut at its stop texts. Knows pieces; nothing of runtimes, which are behind a `Source`."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from llmkit.serve.speaker import Piece
from llmkit.serve.stops import Stops


class Source(Protocol):
    """What a runtime says, of whole characters; the last piece has a `finish`. `close` may come from another thread."""

    def __next__(self) -> Piece: ...

    def close(self) -> None: ...


class Answer(Iterator[Piece]):
    """What `Speaker.speak` returns. `close`, from any thread, ends it and frees its place; iterating it then just ends."""

    def __init__(self, source: Source, stop: Sequence[str]) -> None:
        self._source = source
        self._stops = Stops(stop)
        self._over = False

    def __next__(self) -> Piece:
        tokens = 0
        while not self._over:
            try:
                piece = next(self._source)
            except BaseException:
                self.close()
                raise
            tokens += piece.tokens
            text = self._stops.push(piece.text)
            if self._stops.found or piece.finish:
                self.close()
                return Piece(text + self._stops.flush(), tokens, "stop" if self._stops.found else piece.finish)
            if text:
                return Piece(text, tokens)
        raise StopIteration

    def close(self) -> None:
        self._over = True
        self._source.close()

    def __del__(self) -> None:
        self.close()
