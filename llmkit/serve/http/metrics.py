"""What a server counts, as Prometheus reads it. Knows the text format; one event loop uses it, so nothing is locked.

Written by hand: seven figures need sixty lines, and the client library would be one more dependency, with a registry that the
whole process shares. Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4)
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Seconds, counted by upper bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """A server's counters since it started. `requests`: (route, status) → how many; 499: the client left before an answer."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.filtered = 0
        self.first_token = Histogram()
        self.duration = Histogram()

    def text(self, gauges: Mapping[str, int]) -> str:
        """Everything, with the gauges of this moment: name → number."""
        lines = ["# HELP llmkit_requests_total Requests by route and HTTP status.", "# TYPE llmkit_requests_total counter"]
        lines += [
            f'llmkit_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        counters = {
            "prompt_tokens_total": ("Tokens of the prompts read.", self.prompt_tokens),
            "generated_tokens_total": ("Tokens of the answers made.", self.generated_tokens),
            "filtered_total": ("Prompts and answers with a sensitive word.", self.filtered),
        }
        for name, (told, value) in counters.items():
            lines += [f"# HELP llmkit_{name} {told}", f"# TYPE llmkit_{name} counter", f"llmkit_{name} {value}"]
        for name, value in gauges.items():
            lines += [f"# TYPE llmkit_{name} gauge", f"llmkit_{name} {value}"]
        histograms = {
            "time_to_first_token_seconds": ("From a request's acceptance to its first text.", self.first_token),
            "request_duration_seconds": ("From a request's acceptance to the end of its answer.", self.duration),
        }
        for name, (told, histogram) in histograms.items():
            lines += [f"# HELP llmkit_{name} {told}", f"# TYPE llmkit_{name} histogram", *histogram.lines(f"llmkit_{name}")]
        return "\n".join(lines) + "\n"
