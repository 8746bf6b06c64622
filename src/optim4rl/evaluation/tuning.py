"""Tuning: the rate of an optimizer, chosen on seeds that are never reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        return len(self.rates) > 1 and self.rate in (self.rates[0], self.rates[-1])


def choose_rate(rates: Sequence[float], curves: Sequence[Curves]) -> Tuning:
    """The rate with the highest mean AUC. A rate at which any run diverged is chosen last."""
    scores = [float(np.mean(area_under_curve(c))) for c in curves]
    ranked = [score if np.isfinite(score) else -np.inf for score in scores]
    return Tuning(float(rates[int(np.argmax(ranked))]), tuple(rates), tuple(ranked))


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
