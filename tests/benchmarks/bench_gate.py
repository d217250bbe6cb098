"""How often the gate is right: verdicts on simulated pairs of models, with the tolerance at 0.5 points.

"equal": both models are equally good, so every failure is false; "−2 BLEU": the second is worse by that much. "95 % each" is
what a bound of 95 % for each metric by itself would fail. Run: python tests/benchmarks/bench_gate.py [RUNS]
"""

import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from llmkit.metrics import bootstrap, gate
from tests.metrics import simulated

TOLERANCE = 0.5
SAMPLES = (100, 500, 2000)
Pair = Callable[[int, np.random.Generator], tuple[simulated.Tallies, simulated.Tallies]]


def scenarios() -> dict[str, tuple[tuple[str, ...], Pair]]:
    """By name: the metrics of the gate, and how a pair is drawn."""
    long, short = simulated.pool(), simulated.pool((1, 1))
    return {
        "equal, 55 tokens, 1 metric": (("bleu",), lambda n, rng: simulated.equal_pair(long, n, rng)),
        "equal, 55 tokens, 3 metrics": (simulated.METRICS, lambda n, rng: simulated.equal_pair(long, n, rng)),
        "equal, half the same, 3": (simulated.METRICS, lambda n, rng: simulated.equal_pair(long, n, rng, same=0.5)),
        "equal, 16 tokens, 3 metrics": (simulated.METRICS, lambda n, rng: simulated.equal_pair(short, n, rng)),
        "−2 BLEU, 55 tokens, 1 metric": (("bleu",), lambda n, rng: simulated.unequal_pair(long, n, rng, points=2.0)),
        "−2 BLEU, 55 tokens, 3": (simulated.METRICS, lambda n, rng: simulated.unequal_pair(long, n, rng, points=2.0)),
    }


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"{runs} runs each; shares in %")
    print(f"{'':30} {'samples':>7} {'pass':>6} {'unknown':>8} {'fail':>6} {'95 % each':>10} {'error':>6} {'s a gate':>9}")
    for name, (metrics, pair) in scenarios().items():
        limits = gate.Limits(max_drop=dict.fromkeys(metrics, TOLERANCE))
        for samples in SAMPLES:
            counts: Counter[str] = Counter()
            each, errors, seconds = 0, [], 0.0
            for seed in range(runs):
                before, after = pair(samples, np.random.default_rng(seed))
                started = time.perf_counter()
                found = gate.judge(limits, [gate.Entry("rival", {}, after, before)])
                seconds += time.perf_counter() - started
                counts[found.verdict] += 1
                errors.append(found.checks[0].error or 0.0)
                tested = bootstrap.paired_many([(before[one], after[one]) for one in metrics], seed=seed)
                each += any(one.drop > TOLERANCE and one.lower_bound > 0 for one in tested)
            shares = [100 * counts[verdict] / runs for verdict in (gate.PASS, gate.UNKNOWN, gate.FAIL)]
            print(
                f"{name:30} {samples:7} {shares[0]:6.1f} {shares[1]:8.1f} {shares[2]:6.1f} {100 * each / runs:10.1f} "
                f"{np.mean(errors):6.2f} {seconds / runs:9.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
