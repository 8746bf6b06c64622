"""How much a comparison depends on its tasks: leave each task out, and resample the tasks.

Somebody chose the tasks of a suite. The comparison without one task shows whether that task decides
the result. Tasks resampled with replacement show what another choice of similar tasks might give.
"""

from dataclasses import dataclass

import numpy as np

from optim4rl.benchmark import scale as scales
from optim4rl.benchmark.scale import OtherScores, Scale, Scores
from optim4rl.evaluation.returns import (
    Estimate,
    draw_meta_seeds,
    draw_runs,
    percentile_estimate,
    worst_first,
)
from optim4rl.evaluation.significance import interquartile_means


@dataclass(frozen=True)
class Reading:
    """Hold a comparison of two optimizers on some tasks.

    Attributes:
        difference: difference of the interquartile means of normalised AUC; None if no task has a
            scale.
        improvement: probability that a run of one beats a run of the other, mean over tasks.
    """

    difference: float | None
    improvement: float


@dataclass(frozen=True)
class Sensitivity:
    """Hold a comparison on several tasks, and how it changes with the choice of tasks.

    Attributes:
        whole: the comparison on all tasks.
        without: for each task, the comparison on all other tasks.
        difference: see `Reading`; its interval resamples both tasks and runs.
        improvement: see `Reading`; its interval resamples both tasks and runs.
    """

    whole: Reading
    without: tuple[Reading, ...]
    difference: Estimate | None
    improvement: Estimate


def sensitivity(areas: Scores, others: OtherScores, scale: Scale) -> Sensitivity:
    """Measure how much a comparison depends on its tasks.

    Args:
        areas: AUC of one optimizer's runs, on at least two tasks.
        others: AUC of the other optimizer's runs, on the same seeds.
        scale: scale of the tasks.
    """
    tasks, seeds = areas.shape[0], areas.shape[2]
    every = np.arange(tasks)
    whole = _compare(areas[None], others[None], scale, every[None])
    parts = [
        _compare(areas[None], others[None], scale, np.delete(every, task)[None]) for task in every
    ]
    rng = np.random.default_rng(0)
    drawn = rng.integers(tasks, size=(scales.RESAMPLES, tasks))
    seed_draw = rng.integers(seeds, size=(scales.RESAMPLES, tasks, seeds))
    x, y = (
        draw_runs(side, draw_meta_seeds(side, scales.RESAMPLES, rng), seed_draw)
        for side in (areas, others)
    )
    differences, improvements = _compare(x, y, scale, drawn)
    difference = None
    if scale.resolved.any():
        # A resample in which no task has a scale gives no difference.
        told = differences[scale.resolved[drawn].any(axis=1)]
        difference = percentile_estimate(whole[0][0], told, runs=seeds)
    return Sensitivity(
        _reading(*whole),
        tuple(_reading(*part) for part in parts),
        difference,
        percentile_estimate(whole[1][0], improvements, runs=seeds),
    )


def _reading(differences: np.ndarray, improvements: np.ndarray) -> Reading:
    difference = float(differences[0])
    return Reading(None if np.isnan(difference) else difference, float(improvements[0]))


def _compare(
    x: np.ndarray, y: np.ndarray, scale: Scale, drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute differences and probabilities of improvement of resamples, each on its tasks."""
    rows = np.arange(len(x))[:, None]
    middles = [
        _middle(worst_first(scale.apply(side))[rows, drawn], scale.resolved[drawn])
        for side in (x, y)
    ]
    first, second = (worst_first(side)[rows, drawn] for side in (x, y))
    first = first.reshape(*first.shape[:2], -1, 1)
    second = second.reshape(*second.shape[:2], 1, -1)
    wins = (first > second).mean((2, 3)) + 0.5 * (first == second).mean((2, 3))
    return middles[0] - middles[1], wins.mean(axis=1)


def _middle(scaled: np.ndarray, resolved: np.ndarray) -> np.ndarray:
    """Compute interquartile means over runs of tasks with a scale; NaN if there are none."""
    found = np.full(len(scaled), np.nan)
    counts = resolved.sum(axis=1)
    for count in set(counts.tolist()) - {0}:  # Resamples with equally many tasks fit one array.
        rows = np.flatnonzero(counts == count)
        runs = scaled[rows][resolved[rows]].reshape(len(rows), -1)
        found[rows] = interquartile_means(runs)
    return found
