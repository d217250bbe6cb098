"""What one server knows while it runs: its model once that is loaded, and who is being answered. One event loop uses it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from llmkit.serve.http.admission import Gate
from llmkit.serve.http.metrics import Metrics
from llmkit.serve.http.refusal import RefusalError
from llmkit.serve.http.screen import Words
from llmkit.serve.http.served import Served
from llmkit.serve.speaker import Speaker

_LOADING_SECONDS = 5  # for a client to wait before it asks again
_NAME_CHARS = 100  # of a name that is told back


@dataclass
class Desk:
    """`max_tokens`: of one answer; `queue`: answers that may wait; `name`: what clients call the model, "" for its own name.

    `in_flight`: requests accepted and not yet answered in full; `draining`: no more are.
    """

    words: Words
    queue: int
    max_tokens: int
    name: str = ""
    draining: bool = False
    in_flight: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    served: Served | None = None

    def open(self, speaker: Speaker) -> None:
        """Answer from now on."""
        self.served = Served(
            speaker,
            self.name or speaker.name,
            Gate(parallel=speaker.parallel, queue=self.queue),
            ThreadPoolExecutor(speaker.parallel, thread_name_prefix="answer"),
            self.words,
            self.max_tokens,
            self.metrics,
        )

    @property
    def state(self) -> str:
        """One of ok, loading, draining, failing."""
        if self.draining:
            return "draining"
        if self.served is None:
            return "loading"
        return "ok" if self.served.speaker.alive else "failing"

    def model(self, name: str | None) -> Served:
        """The model by its name; None is the one there is. Raises RefusalError: 503 before it is loaded, 404 for another."""
        if self.served is None:
            raise RefusalError(503, "the model is still loading", code="loading", retry_after=_LOADING_SECONDS)
        if name is not None and name != self.served.name:
            told = f"the model {name[:_NAME_CHARS]!r} does not exist; this server has {self.served.name!r}"
            raise RefusalError(404, told, code="model_not_found", param="model")
        return self.served

    def gauges(self) -> dict[str, int]:
        """Metrics of this moment, by name."""
        gate = self.served.gate if self.served else None
        return {
            "requests_in_flight": self.in_flight,
            "answers_running": gate.running if gate else 0,
            "answers_waiting": gate.waiting if gate else 0,
        }
