"""Scores of learning curves, and what can honestly be said about differences between them.

Scores are arrays ``[task, meta_seed, seed]``: the same meta-seed is the same learned optimizer on
every task, the same evaluation seed is used for every meta-seed, and a classical optimizer has one
meta-seed. Higher is better. NaN is the score of a diverged run: it counts as worse than any number
and is never dropped or replaced by one.

Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264), for the interquartile mean, the stratified bootstrap and the
probability of improvement; Owen 2007, "The pigeonhole bootstrap" (arXiv 0712.1111), for
resampling crossed factors; Welch 1947, "The generalization of Student's problem when several
different population variances are involved" (Biometrika 34), for the test against one optimizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.significance import (
    PermutationTest as PermutationTest,
    WelchTest as WelchTest,
    permutation_test as permutation_test,
    welch_test as welch_test,
    worst_first as worst_first,
)

SIGNIFICANCE = 0.05
# Where chance alone separates two sides more often than this, nothing is clear.
COARSEST_FLOOR = 0.2
# So many meta-seeds let their spread be told from chance; of two it is anything.
WELCH_META_SEEDS = 3

Statistic = Literal["iqm", "mean"]
Verdict = Literal["clear", "clear at this resolution", "not clear"]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval.

    NaN means "worse than any number": a NaN ``low`` says that diverged runs leave the value
    unbounded below. NaN at both ends says that there is no interval: one run shows no spread.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether anything is known of the spread."""
        return not (math.isnan(self.low) and math.isnan(self.high))


# Scores of single runs


def final_return(curves: Curves, last: int = 20) -> Float[np.ndarray, " run"]:
    """Returns each run's mean return over its last updates, NaN for a diverged run.

    Args:
        curves: Learning curves.
        last: Number of updates; a run shorter than that is averaged whole.
    """
    if last < 1:
        raise ValueError(f"last: {last} must be at least 1")
    final: Float[np.ndarray, " run"] = curves.returns[:, -last:].mean(axis=1, dtype=np.float64)
    return final


def area_under_curve(curves: Curves) -> Float[np.ndarray, " run"]:
    """Returns each run's mean return over all updates, NaN for a diverged run."""
    area: Float[np.ndarray, " run"] = curves.returns.mean(axis=1, dtype=np.float64)
    return area


def normalise(
    scores: Float[np.ndarray, "*shape"], floor: float, ceiling: float
) -> Float[np.ndarray, "*shape"]:
    """Rescales the scores of one task so that `floor` becomes 0 and `ceiling` 1.

    Raises:
        ValueError: The ceiling is not a finite number above the floor.
    """
    if not (math.isfinite(floor) and math.isfinite(ceiling) and ceiling > floor):
        raise ValueError(f"ceiling: {ceiling} must be finite and above the floor, {floor}")
    return (scores - floor) / (ceiling - floor)


# Rates


def failure_rate(curves: Curves) -> Estimate:
    """Returns the share of diverged runs with its Wilson interval."""
    return _rate(int(curves.diverged.sum()), curves.diverged.size)


def stuck_rate(
    curves: Curves, floor: float, ceiling: float, threshold: float = 0.9, last: int = 20
) -> Estimate:
    """Returns the share of runs that are stuck, with its Wilson interval.

    A run is stuck when its normalised final return is below `threshold`; a diverged run is stuck.

    Args:
        curves: Learning curves of a short run.
        floor: Return of the untrained policy on the task.
        ceiling: Final return of tuned Adam on the task.
        threshold: Normalised final return that a run has to reach.
        last: As in `final_return`.
    """
    reached = normalise(final_return(curves, last), floor, ceiling) >= threshold
    return _rate(int((~reached).sum()), reached.size)


def _rate(hits: int, count: int) -> Estimate:
    interval = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high))


# Aggregates


def interquartile_mean(values: Float[np.ndarray, "*shape"]) -> float:
    """Returns the mean of the middle half of all values (Agarwal et al. 2021, section 4.3).

    A quarter of the values, rounded down, is cut from either end, as `scipy.stats.trim_mean` does.
    NaN sorts below every number, so the result is NaN exactly if a diverged run is left in the
    middle half.
    """
    if values.size == 0:
        raise ValueError("values: empty; an interquartile mean needs at least one score")
    return float(_interquartile_mean(values.ravel()))


def _interquartile_mean(values: np.ndarray) -> Any:
    cut = values.shape[-1] // 4
    ordered = np.sort(worst_first(values), axis=-1)
    middle = ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return np.where(np.isneginf(middle), np.nan, middle)


def _mean(values: np.ndarray) -> Any:
    return values.mean(axis=-1)


_STATISTICS: dict[Statistic, Callable[[np.ndarray], Any]] = {
    "iqm": _interquartile_mean,
    "mean": _mean,
}


def bootstrap_interval(
    scores: Float[np.ndarray, "task meta_seed seed"],
    *,
    statistic: Statistic = "iqm",
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Returns a statistic over all scores with its 95 % percentile bootstrap interval.

    Tasks are strata: they are never resampled. Meta-seeds and evaluation seeds are crossed, every
    learned optimizer being judged on the same seeds, so they are resampled as crossed factors
    (Owen 2007): one draw of meta-seeds for all tasks, and one draw of seeds per task for all
    meta-seeds. Drawing seeds afresh within each meta-seed would treat the luck of a seed as
    independent between meta-seeds and make the interval too narrow. With one meta-seed the
    interval speaks of that one optimizer and says nothing about repeating its meta-training.
    With a handful of meta-seeds any percentile bootstrap is too narrow (on normal scores with 4
    meta-seeds and 6 seeds this one covers the truth about 90 % of the time, one that draws seeds
    afresh 64 to 86 %), which is why `compare` asks for a permutation test as well. One run on each
    task has no interval.

    Args:
        scores: Normalised if there are several tasks; NaN for a diverged run.
        statistic: "iqm", the interquartile mean over all runs of all tasks, or "mean".
        resamples: Number of bootstrap resamples.
        seed: Same seed, same interval.
    """
    _check_scores(scores, "scores")
    apply = _STATISTICS[statistic]
    rng = np.random.default_rng(seed)
    tasks, meta_seeds, seeds = scores.shape
    meta_draw = rng.integers(meta_seeds, size=(resamples, meta_seeds))
    seed_draw = rng.integers(seeds, size=(resamples, tasks, seeds))
    resampled = scores[
        np.arange(tasks)[None, :, None, None],
        meta_draw[:, None, :, None],
        seed_draw[:, :, None, :],
    ]
    return percentile_estimate(
        apply(scores.ravel()), apply(resampled.reshape(resamples, -1)), runs=scores[0].size
    )


def probability_of_improvement(
    x: Float[np.ndarray, "task x_meta_seed x_seed"],
    y: Float[np.ndarray, "task y_meta_seed y_seed"],
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Returns how likely a run of X beats a run of Y, with its 95 % bootstrap interval.

    The mean over tasks of P(X > Y) + P(X = Y) / 2 over all pairs of runs (Agarwal et al. 2021,
    section 4.3); a diverged run loses against any number and draws against a diverged run.
    Resampling as in `bootstrap_interval`; if X and Y have equally many evaluation seeds, these are
    drawn jointly, which is right where the two share their seeds and does no harm where they
    do not. Where X or Y has one run on each task there is no interval.

    Raises:
        ValueError: X and Y are not scores of the same number of tasks.
    """
    _check_pair(x, y)
    tasks = x.shape[0]
    x_runs = worst_first(x).reshape(tasks, -1, 1)
    y_runs = worst_first(y).reshape(tasks, 1, -1)
    wins = (x_runs > y_runs) + 0.5 * (x_runs == y_runs)
    x_counts, y_counts = _pair_counts(x.shape, y.shape, resamples, seed)
    won = np.einsum("tbj,tbj->b", x_counts @ wins, y_counts)
    return percentile_estimate(float(wins.mean()), won / wins.size, runs=_fewest_runs(x, y))


# Verdicts


@dataclass(frozen=True)
class Comparison:
    """What the scores of X and Y say about each other.

    Attributes:
        difference: Mean score of X minus that of Y, with its bootstrap interval; all NaN if a
            run diverged.
        improvement: Probability that a run of X beats a run of Y.
        test: Of the means of `units` (mean ranks, if a run diverged): a permutation test, or
            against one fixed optimizer Welch's.
        units: What the test is over, for example "4 + 4 meta-seeds".
        diverged: Number of diverged runs of X and of Y.
        verdict: "clear", "clear at this resolution" or "not clear"; the rule is in `compare`.
        sentence: The same in words.
    """

    difference: Estimate
    improvement: Estimate
    test: PermutationTest | WelchTest
    units: str
    diverged: tuple[int, int]
    verdict: Verdict
    sentence: str


def compare(
    x: Float[np.ndarray, "task x_meta_seed x_seed"],
    y: Float[np.ndarray, "task y_meta_seed y_seed"],
    name_x: str,
    name_y: str,
    *,
    metric: str = "AUC",
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Says whether X and Y differ, how sure that is, and why.

    The bootstrap interval of the difference of means is judged together with a permutation test
    over meta-seed means. The test is `welch_test` if one side has one meta-seed (a classical
    optimizer), or the same scores for all (an untrained rule whose heads start at zero), and the
    other at least three. If both sides have one meta-seed, evaluation seeds are permuted, and the
    verdict is about these two optimizers only; shared seeds are then ignored. The rule:

    - "clear": the interval excludes 0 and p <= 0.05;
    - "clear at this resolution": the interval excludes 0 and p is at its floor, but the floor
      itself is above 0.05 (though at most 0.2), so that these counts cannot reach 5 %;
    - "not clear": anything else. One run on a side shows no spread: there is no interval then, and
      nothing is clear.

    If a run diverged, means do not exist and ranks take their place: the interval is that of the
    probability of improvement and must exclude 0.5, and the permutation test compares the units'
    mean mid-ranks among all runs of a task, the same quantity in other units.

    Args:
        x, y: Scores on the same tasks, higher is better; normalised if there are several.
        name_x, name_y, metric: What the sentence calls X, Y and the score.
        resamples, seed: Of the bootstrap; the same seed gives the same result.

    Raises:
        ValueError: X and Y are not scores of the same number of tasks.
    """
    improvement = probability_of_improvement(x, y, resamples=resamples, seed=seed)
    difference = _difference(x, y, resamples, seed)
    diverged = (int(np.isnan(x).sum()), int(np.isnan(y).sum()))
    comparable_x, comparable_y = _mid_ranks(x, y) if any(diverged) else (x, y)
    test, units = _test(comparable_x, comparable_y, seed)
    if any(diverged):
        interval, null = improvement, 0.5
        finding = (
            f"{diverged[0]} of {x.size} runs of {name_x} and {diverged[1]} of {y.size} runs of "
            f"{name_y} diverged, so there is no difference of mean {metric}; a run of {name_x} "
            f"beats one of {name_y} with probability {improvement.value:.2g}"
        )
    else:
        interval, null = difference, 0.0
        finding = _describe_difference(difference.value, name_x, name_y, metric)
    excludes = interval.low > null or interval.high < null
    verdict = _verdict(excludes, test)
    reasons = _reasons(interval, null, test)
    sentence = (
        f"{finding} ({_describe_interval(interval)}; "
        f"{_describe_test(test, units, on_ranks=any(diverged))}): "
        f"{'; '.join([_describe_verdict(verdict, units), *reasons])}."
    )
    return Comparison(difference, improvement, test, units, diverged, verdict, sentence)


def _test(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[PermutationTest | WelchTest, str]:
    """The test that suits the numbers of meta-seeds, and what it is over."""
    x, y = (side[:, :1] if (side == side[:, :1]).all() else side for side in (x, y))
    x_meta_seeds, y_meta_seeds = x.shape[1], y.shape[1]
    fewer, more = sorted((x_meta_seeds, y_meta_seeds))
    if fewer == 1 and more >= WELCH_META_SEEDS and min(x.shape[2], y.shape[2]) > 1:
        # Seeds of different tasks have nothing in common: any of one goes with any of another.
        many, one = (y, x) if x_meta_seeds == 1 else (x, y)
        test = welch_test(many.mean(axis=0), one.mean(axis=(0, 1)))
        sign = -1 if many is y else 1
        units = f"{more} meta-seeds and {many.shape[2]} evaluation seeds"
        return dataclasses.replace(test, difference=sign * test.difference), units
    unit = "meta-seeds" if more > 1 else "evaluation seeds"
    averaged = (0, 2) if more > 1 else (0, 1)
    x_units, y_units = x.mean(axis=averaged), y.mean(axis=averaged)
    units = f"{x_units.size} + {y_units.size} {unit}"
    return permutation_test(x_units, y_units, seed=seed), units


def _difference(x: np.ndarray, y: np.ndarray, resamples: int, seed: int) -> Estimate:
    if np.isnan(x).any() or np.isnan(y).any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    x_counts, y_counts = _pair_counts(x.shape, y.shape, resamples, seed)
    tasks = x.shape[0]
    x_means = np.einsum("tbi,ti->b", x_counts, x.reshape(tasks, -1)) / x.size
    y_means = np.einsum("tbi,ti->b", y_counts, y.reshape(tasks, -1)) / y.size
    return percentile_estimate(
        float(x.mean() - y.mean()), x_means - y_means, runs=_fewest_runs(x, y)
    )


def _fewest_runs(x: np.ndarray, y: np.ndarray) -> int:
    """Runs on a task, of the side that has fewer."""
    return min(x[0].size, y[0].size)


def _mid_ranks(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks all runs of X and Y within each task, diverged runs lowest."""
    tasks = x.shape[0]
    pooled = worst_first(np.concatenate([x.reshape(tasks, -1), y.reshape(tasks, -1)], axis=1))
    ranks = scipy.stats.rankdata(pooled, axis=1)
    x_runs = x[0].size
    return ranks[:, :x_runs].reshape(x.shape), ranks[:, x_runs:].reshape(y.shape)


def _verdict(excludes: bool, test: PermutationTest | WelchTest) -> Verdict:
    if excludes and test.p <= SIGNIFICANCE:
        return "clear"
    if excludes and test.at_floor and test.floor <= COARSEST_FLOOR:
        return "clear at this resolution"
    return "not clear"


def _describe_difference(difference: float, name_x: str, name_y: str, metric: str) -> str:
    if difference == 0:
        return f"{name_x} and {name_y} have the same mean {metric}"
    direction = "higher" if difference > 0 else "lower"
    return f"{name_x} is {direction} than {name_y} by {_number(abs(difference))} {metric}"


def _describe_interval(interval: Estimate) -> str:
    if not interval.has_interval:
        return "no interval from one run"
    return f"95 % interval {_number(interval.low)} to {_number(interval.high)}"


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _describe_test(test: PermutationTest | WelchTest, units: str, on_ranks: bool) -> str:
    ranks = " on ranks" if on_ranks else ""
    if isinstance(test, WelchTest):
        return f"Welch's test{ranks} over {units} p = {test.p:.2g}"
    kind = "exact permutation test" if test.exact else "permutation test"
    drawn = "" if test.exact else f" with {test.splits:,} random splits"
    at_floor = ", its floor" if test.at_floor else ""
    return f"{kind}{ranks} over {units}{drawn} p = {test.p:.2g}{at_floor}"


def _describe_verdict(verdict: Verdict, units: str) -> str:
    words = f"clear at the resolution of {units}" if "resolution" in verdict else verdict
    if "meta-seeds" not in units:
        return f"{words} for this one optimizer on either side"
    return words


def _reasons(interval: Estimate, null: float, test: PermutationTest | WelchTest) -> list[str]:
    reasons = []
    if not interval.has_interval:
        reasons.append("one run shows no spread")
    elif not (interval.low > null or interval.high < null):
        reasons.append(f"the interval includes {null:g}")
    if test.floor > SIGNIFICANCE:
        reasons.append(
            "no result of that size can be significant at 5 % "
            f"(the smallest possible p is {test.floor:.2g})"
        )
    elif test.p > SIGNIFICANCE:
        reasons.append("p is above 0.05")
    return reasons


# Resampling


def _pair_counts(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], resamples: int, seed: int
) -> tuple[Float[np.ndarray, "task resample x_run"], Float[np.ndarray, "task resample y_run"]]:
    """Returns how often each run occurs in each resample.

    Meta-seeds of X and Y are drawn independently, evaluation seeds jointly if equally many.
    """
    rng = np.random.default_rng(seed)
    tasks, x_meta_seeds, x_seeds = x_shape
    _, y_meta_seeds, y_seeds = y_shape
    x_meta = draw_counts(rng, (1, resamples), x_meta_seeds)
    y_meta = draw_counts(rng, (1, resamples), y_meta_seeds)
    x_seed = draw_counts(rng, (tasks, resamples), x_seeds)
    y_seed = x_seed if x_seeds == y_seeds else draw_counts(rng, (tasks, resamples), y_seeds)
    return crossed(x_meta, x_seed), crossed(y_meta, y_seed)


def draw_counts(rng: np.random.Generator, shape: tuple[int, int], size: int) -> np.ndarray:
    """Returns how often each of `size` items occurs in `size` draws with replacement."""
    return rng.multinomial(size, np.full(size, 1 / size), size=shape).astype(np.float64)


def crossed(meta: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Returns the counts of runs, ``[..., meta_seed * seed]``, of crossed draws of both."""
    counts: np.ndarray = meta[..., :, None] * seeds[..., None, :]
    return counts.reshape(*seeds.shape[:2], -1)


def percentile_estimate(value: Any, resampled: np.ndarray, *, runs: int) -> Estimate:
    """Returns the value with the 95 % percentile interval of its resamples.

    Order statistics are taken without interpolation, since -inf cannot be interpolated.

    Args:
        value: The estimate itself.
        resampled: The same of each resample.
        runs: Number of runs on each task, of the side that has fewest. One run shows no spread, so
            there is no interval.
    """
    if runs < 2:
        return Estimate(float(value), float("nan"), float("nan"))
    ordered = np.sort(worst_first(resampled))
    tail = (1 - 0.95) / 2 * (ordered.size - 1)
    low, high = ordered[math.floor(tail)], ordered[ordered.size - 1 - math.floor(tail)]
    return Estimate(float(value), _nan_if_worst(low), _nan_if_worst(high))


def _nan_if_worst(value: float) -> float:
    return float("nan") if np.isneginf(value) else float(value)


def _check_scores(scores: np.ndarray, name: str) -> None:
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(
            f"{name}: shape {scores.shape} must be [task, meta_seed, seed], all at least 1"
        )
    if np.isinf(scores).any():
        raise ValueError(f"{name}: holds an infinity; the score of a diverged run is NaN")


def _check_pair(x: np.ndarray, y: np.ndarray) -> None:
    _check_scores(x, "x")
    _check_scores(y, "y")
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"y: {y.shape[0]} tasks, but x has {x.shape[0]}; compare on the same ones")
