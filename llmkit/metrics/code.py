"""How well a model writes code: pass@k, and validity and complexity of its programs. Knows outcomes; runs nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmkit.errors import UsageError
from llmkit.metrics.program import complexity, parsed
from llmkit.metrics.tally import Tally, mean, ratio
from llmkit.problems import Outcome, Problem


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance (0–1) that at least one of `k` samples passes, drawn without replacement from `n` of which `correct` do.

    1 − C(n − correct, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1).

    Raises:
        UsageError: not 0 ≤ correct ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise UsageError(
            f"pass@{k} of {n} samples with {correct} correct", code="LK0710", next=f"sample each problem {k} times at least"
        )
    # A product of shares: the binomials themselves leave the range of floats.
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1))) if n - correct >= k else 1.0


def tallies(
    outcomes: Mapping[Problem, Sequence[Outcome]], programs: Mapping[Problem, Sequence[str]], *, ks: Sequence[int] = (1,)
) -> dict[str, Tally]:
    """One row a problem: pass@k (0–100) for each k that all problems have samples for, syntax_valid (0–1), complexity.

    `outcomes` may be empty: code that was not run has no pass@k. `complexity` is a mean over the programs that define their
    function.
    """
    made: dict[str, Tally] = {}
    fewest = min(map(len, outcomes.values()), default=0)
    for k in sorted({k for k in ks if 1 <= k <= fewest}):
        shares = [pass_at_k(len(ends), sum(end.passed for end in ends), k) for ends in outcomes.values()]
        made[f"pass@{k}"] = mean(f"pass@{k}", 100.0 * np.array(shares))
    if programs:
        valid = [[sum(parsed(one) is not None for one in some), len(some)] for some in programs.values()]
        made["syntax_valid"] = Tally("syntax_valid", np.array(valid, dtype=np.float64), ratio, unit="share")
        known = [[one for text in some if (one := complexity(text, problem.entry_point))] for problem, some in programs.items()]
        sums = np.array([[sum(numbers), len(numbers)] for numbers in known], dtype=np.float64)
        made["complexity"] = Tally("complexity", sums, ratio, higher_is_better=False, unit="paths")
    return made


def report(
    outcomes: Mapping[Problem, Sequence[Outcome]], programs: Mapping[Problem, Sequence[str]], *, ks: Sequence[int] = (1,)
) -> dict[str, Any]:
    """The scores of `tallies` and the counts beside them: pass@k …, syntax_valid, complexity (None: no program defines its
    function), n_problems, n_samples, timeouts.
    """
    made = tallies(outcomes, programs, ks=ks)
    scores: dict[str, Any] = {name: tally.score for name, tally in made.items()}
    if "complexity" in made and not made["complexity"].counts[:, 1].any():
        scores["complexity"] = None
    ends = [end for some in outcomes.values() for end in some]
    return scores | {
        "n_problems": len(programs or outcomes),
        "n_samples": sum(map(len, (programs or outcomes).values())),
        "timeouts": sum(end.timed_out for end in ends),
    }
