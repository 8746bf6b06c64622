"""The rule for when a difference is clear, for studies and for suites.

A difference of interquartile means is clear if two conditions hold. Its bootstrap interval excludes
zero. Its test, with meta-seeds and seeds as random factors, has p <= 0.05 after Holm's correction
for all comparisons made together (Holm 1979, "A simple sequentially rejective multiple test
procedure"). If a difference is not clear, we report the smallest effect that these seeds and
meta-seeds would find four times in five.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float

from optim4rl.evaluation.returns import SIGNIFICANCE, Comparison, Estimate, Verdict, verdict_of
from optim4rl.evaluation.significance import difference_error

POWER = 0.8


@dataclass(frozen=True)
class Claim:
    """Hold the verdict on one of several comparisons.

    Attributes:
        comparison: the comparison by itself, without correction.
        interval: interval of the difference, or of the probability of improvement if a run
            diverged.
        p: the test's p after correction for all comparisons.
        verdict: as in `Comparison`, after correction.
        smallest_effect: the smallest difference that is found four times in five; None if a run
            diverged or there are too few runs to estimate their spread.
    """

    comparison: Comparison
    interval: Estimate
    p: float
    verdict: Verdict
    smallest_effect: float | None

    @property
    def is_higher(self) -> bool:
        """Return whether the first side is ahead; meaningful if the verdict is "clear"."""
        return self.interval.value > self.comparison.null


def judge(
    comparisons: Sequence[Comparison],
    effects: Sequence[float | None],
    intervals: Sequence[Estimate] | None = None,
) -> tuple[Claim, ...]:
    """Judge comparisons that are made together.

    Args:
        comparisons: each comparison by itself.
        effects: the smallest effect of each comparison; see `smallest_effect`.
        intervals: intervals of the differences; None: the comparisons' own.
    """
    corrected = holm([comparison.test.p for comparison in comparisons])
    if intervals is None:
        intervals = [comparison.difference for comparison in comparisons]
    claims = []
    for own, p, effect, interval in zip(comparisons, corrected, effects, intervals, strict=True):
        if any(own.diverged):
            interval = own.improvement
        claims.append(Claim(own, interval, p, verdict_of(interval, own.null, p), effect))
    return tuple(claims)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values by Holm's method; the order is kept."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def smallest_effect(
    x: Float[np.ndarray, "task x_meta_seed x_seed"],
    y: Float[np.ndarray, "task y_meta_seed y_seed"],
) -> float | None:
    """Return the smallest difference of IQMs that a test at 5 % finds four times in five.

    It is (t(0.975) + t(0.8)) times the standard error of the difference (see `significance`), which
    is about 2.8 standard errors if there are many degrees of freedom.

    Args:
        x: Scores, normalised if there are several tasks.
        y: Scores on the same tasks.

    Returns:
        None if a run diverged, if a side has two meta-seeds, which give no test, or if each side
        has a single run, which shows no spread.
    """
    if np.isnan(x).any() or np.isnan(y).any() or 2 in (x.shape[1], y.shape[1]):
        return None
    error = difference_error(x, y)
    if not error.variance:
        return None
    quantiles = scipy.special.stdtrit(error.degrees, [1 - SIGNIFICANCE / 2, POWER])
    return float(quantiles.sum()) * math.sqrt(error.variance)
