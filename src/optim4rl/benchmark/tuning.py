"""Tuning: the best value of a grid, chosen on seeds that are never reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Tuning:
    """A setting and how it was found.

    Attributes:
        rate: the best of the grid.
        rates: the grid.
        scores: mean AUC over the tuning seeds at each value; -inf where a run diverged.
    """

    rate: float
    rates: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """The best value is the grid's first or last, so that the optimum may lie outside."""
        return is_edge(self.rate, self.rates)


def is_edge(value: float | None, grid: Sequence[float]) -> bool:
    """Whether a value is the first or last of a grid of several."""
    return len(grid) > 1 and value in (grid[0], grid[-1])


def best_of_grid(grid: Sequence[float], areas: Float[np.ndarray, "value run"]) -> Tuning:
    """The value of a grid with the highest mean AUC; one with a diverged run is chosen last."""
    means = areas.mean(axis=1)
    scores = np.where(np.isfinite(means), means, -np.inf)
    return Tuning(float(grid[int(np.argmax(scores))]), tuple(grid), tuple(scores.tolist()))
