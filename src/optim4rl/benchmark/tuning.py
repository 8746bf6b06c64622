"""Tuning: the rate of an optimizer, chosen on seeds that are never reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.learning import Family, learning_curves
from optim4rl.evaluation.returns import area_under_curve
from optim4rl.optimizers.rule import MetaParameters
from optim4rl.tasks.interface import EvaluationTask


@dataclass(frozen=True)
class Tuning:
    """A rate and how it was found.

    Attributes:
        rate: the best of the grid.
        rates: the grid.
        scores: mean AUC over the tuning seeds at each rate; -inf where a run diverged.
    """

    rate: float
    rates: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """The best rate is the grid's first or last, so that the optimum may lie outside."""
        return is_edge(self.rate, self.rates)


def is_edge(value: float | None, grid: Sequence[float]) -> bool:
    """Whether a value is the first or last of a grid of several."""
    return len(grid) > 1 and value in (grid[0], grid[-1])


def choose_rate(rates: Sequence[float], curves: Sequence[Curves]) -> Tuning:
    """The rate with the highest mean AUC. A rate at which any run diverged is chosen last."""
    return best_of_grid(rates, np.stack([area_under_curve(c) for c in curves]))


def best_of_grid(grid: Sequence[float], areas: Float[np.ndarray, "value run"]) -> Tuning:
    """The value of a grid with the highest mean AUC; one with a diverged run is chosen last."""
    means = areas.mean(axis=1)
    scores = np.where(np.isfinite(means), means, -np.inf)
    return Tuning(float(grid[int(np.argmax(scores))]), tuple(grid), tuple(scores.tolist()))


def tune_rate(
    task: EvaluationTask,
    family: Family,
    parameters: MetaParameters | None,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    updates: int,
) -> Tuning:
    """Train at every rate on the tuning seeds and choose."""
    curves = learning_curves(task, family, parameters, rates=rates, seeds=seeds, updates=updates)
    return choose_rate(rates, curves)
