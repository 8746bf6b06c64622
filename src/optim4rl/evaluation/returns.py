"""Scores of learning curves, and tests of the differences between them.

Scores are arrays ``[task, meta_seed, seed]``: the same meta-seed is the same learned optimizer on
every task, the same evaluation seed is used for every meta-seed, and a classical optimizer has one
meta-seed. Higher is better. NaN is the score of a diverged run: it counts as worse than any number
and is never dropped or replaced by a number.

Sources: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264), for the interquartile mean, the stratified bootstrap and the
probability of improvement; Owen 2007, "The pigeonhole bootstrap" (arXiv 0712.1111), for
resampling crossed factors. The test is in `significance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from jaxtyping import Float, Int

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.significance import (
    TRIM,
    WelchTest as WelchTest,
    interquartile_mean as interquartile_mean,
    interquartile_means,
    welch_test as welch_test,
    worst_first as worst_first,
)

SIGNIFICANCE = 0.05

Statistic = Literal["iqm", "mean"]
Verdict = Literal["clear", "not clear"]


@dataclass(frozen=True)
class Estimate:
    """Hold a value and its 95 % interval.

    NaN means "worse than any number": a NaN ``low`` says that diverged runs leave the value
    unbounded below. NaN at both ends says that there is no interval: one run shows no spread.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Return whether there is an interval."""
        return not (math.isnan(self.low) and math.isnan(self.high))

    def excludes(self, value: float) -> bool:
        """Return whether a value lies outside the interval; False without an interval."""
        return self.low > value or self.high < value


# Scores of single runs


def final_return(curves: Curves, last: int = 20) -> Float[np.ndarray, " run"]:
    """Return each run's mean return over its last updates, NaN for a diverged run.

    Args:
        curves: Learning curves.
        last: Number of updates; a shorter run is averaged whole.
    """
    if last < 1:
        raise ValueError(f"last: {last} must be at least 1")
    final: Float[np.ndarray, " run"] = curves.returns[:, -last:].mean(axis=1, dtype=np.float64)
    return final


def area_under_curve(curves: Curves) -> Float[np.ndarray, " run"]:
    """Return each run's mean return over all updates, NaN for a diverged run."""
    area: Float[np.ndarray, " run"] = curves.returns.mean(axis=1, dtype=np.float64)
    return area


def normalise(
    scores: Float[np.ndarray, "*shape"], floor: float, ceiling: float
) -> Float[np.ndarray, "*shape"]:
    """Rescale the scores of one task so that `floor` becomes 0 and `ceiling` 1.

    Raises:
        ValueError: The ceiling is not a finite number above the floor.
    """
    if not (math.isfinite(floor) and math.isfinite(ceiling) and ceiling > floor):
        raise ValueError(f"ceiling: {ceiling} must be finite and above the floor, {floor}")
    return (scores - floor) / (ceiling - floor)


# Rates


def failure_rate(curves: Curves) -> Estimate:
    """Return the share of diverged runs with its Wilson interval."""
    return _rate(int(curves.diverged.sum()), curves.diverged.size)


def stuck_rate(curves: Curves, floor: float, ceiling: float, threshold: float = 0.9) -> Estimate:
    """Return the share of runs that are stuck, with its Wilson interval.

    A run is stuck when its normalised final return is below `threshold`; a diverged run is stuck.

    Args:
        curves: Learning curves of a short run.
        floor: Return of the untrained policy on the task.
        ceiling: Final return of tuned Adam on the task.
        threshold: Normalised final return that a run has to reach.
    """
    reached = normalise(final_return(curves), floor, ceiling) >= threshold
    return _rate(int((~reached).sum()), reached.size)


def _rate(hits: int, count: int) -> Estimate:
    """Return a share and its Wilson interval (1927), as `scipy.stats.binomtest` computes it.

    `scipy.stats` itself takes half a second to import.
    """
    share, z = hits / count, float(scipy.special.ndtri(0.975))
    unit = 2 * (count + z**2)
    centre = (2 * count * share + z**2) / unit
    reach = z / unit * math.sqrt(4 * count * share * (1 - share) + z**2)
    low = centre - reach if hits else 0.0
    return Estimate(share, low, centre + reach if hits < count else 1.0)


# Aggregates


_STATISTICS: dict[Statistic, Callable[[np.ndarray], Any]] = {
    "iqm": interquartile_means,
    "mean": lambda values: values.mean(axis=-1),
}


def bootstrap_interval(
    scores: Float[np.ndarray, "task meta_seed seed"],
    *,
    statistic: Statistic = "iqm",
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Return a statistic over all scores with its 95 % percentile bootstrap interval.

    Tasks are strata: they are never resampled. Meta-seeds and evaluation seeds are crossed, because
    every learned optimizer is judged on the same seeds. So they are resampled as crossed factors
    (Owen 2007): one draw of meta-seeds for all tasks, and one draw of seeds per task for all
    meta-seeds. Drawing seeds afresh within each meta-seed would treat the luck of a seed as
    independent between meta-seeds and make the interval too narrow.

    With one meta-seed the interval is about that one optimizer and says nothing about repeating its
    meta-training. With a handful of meta-seeds any percentile bootstrap is too narrow, so `compare`
    needs a test as well. On normal scores with 4 meta-seeds and 6 seeds this bootstrap covers the
    truth about 90 % of the time; a bootstrap that draws seeds afresh covers it 64 to 86 %. One run
    on each task has no interval.

    Args:
        scores: Normalised if there are several tasks; NaN for a diverged run.
        statistic: "iqm", the interquartile mean over all runs of all tasks, or "mean".
        resamples: Number of bootstrap resamples.
        seed: Same seed, same interval.
    """
    _check_scores(scores, "scores")
    apply = _STATISTICS[statistic]
    rng = np.random.default_rng(seed)
    tasks, _, seeds = scores.shape
    meta_draw = draw_meta_seeds(scores, resamples, rng)
    seed_draw = rng.integers(seeds, size=(resamples, tasks, seeds))
    resampled = draw_runs(scores, meta_draw, seed_draw)
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
    """Return the probability that a run of X beats a run of Y, with a 95 % bootstrap interval.

    It is the mean over tasks of P(X > Y) + P(X = Y) / 2 over all pairs of runs (Agarwal et al.
    2021, section 4.3); a diverged run loses against any number and draws against a diverged run.
    Runs are resampled as in `bootstrap_interval`. If X and Y have equally many evaluation seeds,
    these are drawn jointly. This is right if they share their seeds, and harmless if not. If X or Y
    has one run on each task, there is no interval.

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
    """Hold the comparison of the scores of X and Y.

    Attributes:
        difference: Interquartile mean of X minus Y's, with its bootstrap interval; all NaN
            if a run diverged.
        improvement: Probability that a run of X beats a run of Y.
        test: Test of the difference (of mean ranks, if a run diverged), over `units`.
        units: The samples of the test, for example "4 + 4 meta-seeds and 8 evaluation seeds".
        diverged: Number of diverged runs of X and of Y.
        verdict: "clear" or "not clear"; the rule is in `compare`.
        lower_is_better: Whether a smaller score is the better one.
        sentence: The comparison in words.
    """

    difference: Estimate
    improvement: Estimate
    test: WelchTest
    units: str
    diverged: tuple[int, int]
    verdict: Verdict
    sentence: str
    lower_is_better: bool = False

    @property
    def null(self) -> float:
        """Return the value without an effect: 0, or 0.5 if a run diverged and ranks decide."""
        return 0.5 if any(self.diverged) else 0.0

    @property
    def favours_x(self) -> bool:
        """Return whether X is ahead; meaningful if the verdict is "clear"."""
        if any(self.diverged):
            return self.improvement.value > 0.5
        return (self.difference.value > 0) != self.lower_is_better


def compare(
    x: Float[np.ndarray, "task x_meta_seed x_seed"],
    y: Float[np.ndarray, "task y_meta_seed y_seed"],
    name_x: str,
    name_y: str,
    *,
    metric: str = "AUC",
    unit: str = "evaluation seeds",
    lower_is_better: bool = False,
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Say whether X and Y differ, how sure that is, and why.

    Tables show the difference of interquartile means. It has a bootstrap interval and a test
    (`significance.welch_test`), both with meta-seeds and evaluation seeds as random factors. A side
    whose meta-seeds all score the same (an untrained rule whose heads start at zero) counts as one
    meta-seed. If both sides have one meta-seed, the verdict is about these two optimizers only. The
    rule:

    - "clear": the interval excludes 0 and p <= 0.05;
    - "not clear": anything else. One run on a side has no spread, so no interval: nothing is clear.

    If a run diverged, ranks replace scores. The interval is the probability of improvement's and
    must exclude 0.5. The test compares mean mid-ranks among all runs of a task, the same quantity
    in other units.

    Args:
        x, y: Scores on the same tasks; normalised if there are several.
        name_x, name_y, metric: Names of X, Y and the score in the sentence.
        unit: Name of the seeds: "evaluation seeds" of an optimizer, or "seeds" of whole runs.
        lower_is_better: Whether a smaller score is the better one.
        resamples, seed: Number of bootstrap resamples, and the seed of their draws.

    Raises:
        ValueError: X and Y are not scores of the same number of tasks.
    """
    better_x, better_y = (-x, -y) if lower_is_better else (x, y)
    improvement = probability_of_improvement(better_x, better_y, resamples=resamples, seed=seed)
    difference = difference_of_iqm(x, y, resamples=resamples, seed=seed)
    x, y = better_x, better_y
    diverged = (int(np.isnan(x).sum()), int(np.isnan(y).sum()))
    lost = any(diverged)
    test, units = _test(x, y, unit, on_ranks=lost)
    interval, null = (improvement, 0.5) if lost else (difference, 0.0)
    verdict = verdict_of(interval, null, test.p)
    finding = _describe_difference(difference.value, name_x, name_y, metric)
    if lost:
        finding = (
            f"{diverged[0]} of {x.size} runs of {name_x} and {diverged[1]} of {y.size} runs of "
            f"{name_y} diverged, so there is no difference of {metric}; a run of {name_x} beats "
            f"one of {name_y} with probability {improvement.value:.2g}"
        )
    reasons = _reasons(interval, null, test, x.shape[1], y.shape[1])
    sentence = (
        f"{finding} ({_describe_interval(interval)}; Welch's test{' on ranks' * lost} over {units} "
        f"p = {test.p:.2g}): {'; '.join([_describe_verdict(verdict, units), *reasons])}."
    )
    said = (verdict, sentence, lower_is_better)
    return Comparison(difference, improvement, test, units, diverged, *said)


def verdict_of(interval: Estimate, null: float, p: float) -> Verdict:
    """Return "clear" if p <= 0.05 and the interval excludes `null`, the value without an effect."""
    return "clear" if interval.excludes(null) and p <= SIGNIFICANCE else "not clear"


def _test(x: np.ndarray, y: np.ndarray, unit: str, *, on_ranks: bool) -> tuple[WelchTest, str]:
    """Test the difference; return the test and its units in words."""
    x, y = (side[:, :1] if (side == side[:, :1]).all() else side for side in (x, y))
    test = welch_test(*_mid_ranks(x, y), np.mean) if on_ranks else welch_test(x, y)
    counts = [count for count in (x.shape[1], y.shape[1]) if count > 1]
    seeds = f"{x.shape[2]} {unit}"
    if x.shape[2] != y.shape[2]:
        seeds = f"{x.shape[2]} + {y.shape[2]} {unit}"
    units = f"{' + '.join(map(str, counts))} meta-seeds and {seeds}" if counts else seeds
    return test, units


def difference_of_iqm(
    x: Float[np.ndarray, "task x_meta_seed x_seed"],
    y: Float[np.ndarray, "task y_meta_seed y_seed"],
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Return X's interquartile mean minus Y's, with its 95 % bootstrap interval.

    Runs are resampled as in `probability_of_improvement`. All values are NaN if a run diverged.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    counts = _pair_counts(x.shape, y.shape, resamples, seed)
    x_means, y_means = (
        _counted_iqm(side, count) for side, count in zip((x, y), counts, strict=True)
    )
    value = interquartile_mean(x) - interquartile_mean(y)
    return percentile_estimate(value, x_means - y_means, runs=_fewest_runs(x, y))


def _counted_iqm(
    scores: np.ndarray, counts: Float[np.ndarray, "task resample run"]
) -> Float[np.ndarray, " resample"]:
    """Compute interquartile means of scores, each repeated as often as it is counted."""
    order = np.argsort(scores, axis=None)
    ordered = scores.reshape(-1)[order]
    upper = counts.transpose(1, 0, 2).reshape(counts.shape[1], -1)[:, order].cumsum(axis=1)
    cut = scores.size // TRIM
    inside = np.diff(np.clip(upper, cut, scores.size - cut), axis=1, prepend=cut)
    means: np.ndarray = inside @ ordered / (scores.size - 2 * cut)
    return means


def _fewest_runs(x: np.ndarray, y: np.ndarray) -> int:
    """Return the number of runs on a task, for the side with fewer."""
    return min(x[0].size, y[0].size)


def _mid_ranks(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank all runs of X and Y within each task, diverged runs lowest."""
    tasks = x.shape[0]
    pooled = worst_first(np.concatenate([x.reshape(tasks, -1), y.reshape(tasks, -1)], axis=1))
    ranks = scipy.stats.rankdata(pooled, axis=1)
    x_runs = x[0].size
    return ranks[:, :x_runs].reshape(x.shape), ranks[:, x_runs:].reshape(y.shape)


def _describe_difference(difference: float, name_x: str, name_y: str, metric: str) -> str:
    if difference == 0:
        return f"{name_x} and {name_y} have the same {metric}"
    direction = "higher" if difference > 0 else "lower"
    return f"{name_x} is {direction} than {name_y} by {_number(abs(difference))} {metric}"


def _describe_interval(interval: Estimate) -> str:
    if not interval.has_interval:
        return "no interval from one run"
    return f"95 % interval {_number(interval.low)} to {_number(interval.high)}"


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _describe_verdict(verdict: Verdict, units: str) -> str:
    if "evaluation seeds" in units and "meta-seeds" not in units:
        return f"{verdict} for this one optimizer on either side"
    return verdict


def _reasons(interval: Estimate, null: float, test: WelchTest, *meta_seeds: int) -> list[str]:
    reasons = []
    if not interval.has_interval:
        reasons.append("one run shows no spread")
    elif not interval.excludes(null):
        reasons.append(f"the interval includes {null:g}")
    if 2 in meta_seeds:
        reasons.append("two meta-seeds do not say how much meta-seeds differ")
    elif test.p > SIGNIFICANCE:
        reasons.append("p is above 0.05")
    return reasons


# Resampling


def _pair_counts(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], resamples: int, seed: int
) -> tuple[Float[np.ndarray, "task resample x_run"], Float[np.ndarray, "task resample y_run"]]:
    """Return how often each run occurs in each resample.

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


def draw_meta_seeds(
    scores: Float[np.ndarray, "task meta_seed seed"], resamples: int, rng: np.random.Generator
) -> Int[np.ndarray, "resample meta_seed"]:
    """Return one draw of meta-seeds for each resample, the same for all tasks."""
    return rng.integers(scores.shape[1], size=(resamples, scores.shape[1]))


def draw_runs(
    scores: Float[np.ndarray, "task meta_seed seed"],
    meta_draw: Int[np.ndarray, "resample meta_seed"],
    seed_draw: Int[np.ndarray, "resample task seed"],
) -> Float[np.ndarray, "resample task meta_seed seed"]:
    """Return the scores of crossed draws of meta-seeds and seeds."""
    tasks = np.arange(scores.shape[0])[None, :, None, None]
    drawn: np.ndarray = scores[tasks, meta_draw[:, None, :, None], seed_draw[:, :, None, :]]
    return drawn


def draw_counts(rng: np.random.Generator, shape: tuple[int, int], size: int) -> np.ndarray:
    """Return how often each of `size` items occurs in `size` draws with replacement."""
    return rng.multinomial(size, np.full(size, 1 / size), size=shape).astype(np.float64)


def crossed(meta: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the counts of runs, ``[..., meta_seed * seed]``, from crossed draws of both."""
    counts: np.ndarray = meta[..., :, None] * seeds[..., None, :]
    return counts.reshape(*seeds.shape[:2], -1)


def percentile_estimate(value: Any, resampled: np.ndarray, *, runs: int) -> Estimate:
    """Return the value with the 95 % percentile interval of its resamples.

    Order statistics are taken without interpolation, since -inf cannot be interpolated.

    Args:
        value: The estimate itself.
        resampled: The estimate of each resample.
        runs: Number of runs on each task, for the side with fewest. One run shows no spread, so
            there is no interval.
    """
    if runs < 2:
        return Estimate(float(value), float("nan"), float("nan"))
    ranked = worst_first(resampled)
    low = np.quantile(ranked, 0.025, method="lower")
    high = np.quantile(ranked, 0.975, method="higher")
    ends = (float("nan") if np.isneginf(end) else float(end) for end in (low, high))
    return Estimate(float(value), *ends)


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
