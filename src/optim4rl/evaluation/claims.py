"""When a difference is clear: one rule for studies and for suites.

A difference is claimed where its bootstrap interval excludes zero and a test with meta-seeds as
luck has p <= 0.05 after Holm's correction for all comparisons that are made together (Holm 1979, "A
simple sequentially rejective multiple test procedure"). Where nothing can be claimed, the smallest
effect is told that so many seeds and meta-seeds find four times in five.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float

from optim4rl.evaluation.returns import (
    COARSEST_FLOOR,
    SIGNIFICANCE,
    Comparison,
    Estimate,
    Verdict,
)

POWER = 0.8


@dataclass(frozen=True)
class Claim:
    """What can be said about one of several comparisons.

    Attributes:
        comparison: the comparison by itself.
        interval: of the difference; that of the probability of improvement if a run diverged.
        p: the test's p after correction for all comparisons.
        verdict: as in `Comparison`, after correction.
        smallest_effect: the smallest difference that is found four times in five; None where a run
            diverged or too few runs say how much they vary.
    """

    comparison: Comparison
    interval: Estimate
    p: float
    verdict: Verdict
    smallest_effect: float | None

    @property
    def is_higher(self) -> bool:
        """Whether the first side is ahead; meaningful where the verdict is not "not clear"."""
        null = 0.5 if any(self.comparison.diverged) else 0.0
        return self.interval.value > null


def judge(
    comparisons: Sequence[Comparison],
    effects: Sequence[float | None],
    intervals: Sequence[Estimate] | None = None,
) -> tuple[Claim, ...]:
    """Judge comparisons that are made together.

    Args:
        comparisons: each by itself.
        effects: the smallest effect of each, see `smallest_effect`.
        intervals: of the differences, where others than the comparisons' own are to be used.
    """
    corrected = holm([comparison.test.p for comparison in comparisons])
    claims = []
    for index, comparison in enumerate(comparisons):
        interval, null = comparison.difference, 0.0
        if intervals is not None:
            interval = intervals[index]
        if any(comparison.diverged):
            interval, null = comparison.improvement, 0.5
        excludes = interval.low > null or interval.high < null
        verdict: Verdict = "not clear"
        floor = comparison.test.floor
        if excludes and corrected[index] <= SIGNIFICANCE:
            verdict = "clear"
        elif (
            excludes
            and comparison.test.at_floor
            and len(comparisons) * floor > SIGNIFICANCE
            and floor <= COARSEST_FLOOR
        ):
            verdict = "clear at this resolution"
        claims.append(Claim(comparison, interval, corrected[index], verdict, effects[index]))
    return tuple(claims)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the order of the given ones."""
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
    """The smallest difference of means that a test at 5 % finds four times in five.

    (t(0.975) + t(0.8)) times the standard error of the difference, whose variance is that of each
    side's meta-seed means and that of the seeds' differences, each over its number (Welch 1947;
    about 2.8 standard errors where there are many).

    Args:
        x: Scores, normalised if there are several tasks.
        y: Scores on the same tasks.

    Returns:
        None if a run diverged, or a single run of each side says nothing about chance.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        return None
    x_seeds, y_seeds = x.mean(axis=(0, 1)), y.mean(axis=(0, 1))
    paired = x_seeds.size == y_seeds.size
    luck = [side.mean(axis=(0, 2)) for side in (x, y)]
    luck += [x_seeds - y_seeds] if paired else [x_seeds, y_seeds]
    luck = [part for part in luck if part.size > 1]
    variances = np.array([part.var(ddof=1) / part.size for part in luck])
    variance = float(variances.sum())
    if not variance:
        return None
    freedom = np.array([part.size - 1 for part in luck])
    degrees = variance**2 / float((variances**2 / freedom).sum())
    quantiles = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, degrees) + scipy.stats.t.ppf(POWER, degrees)
    return float(quantiles) * math.sqrt(variance)
