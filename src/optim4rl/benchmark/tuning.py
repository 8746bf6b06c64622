"""Tuning: choose the best value of a grid, on seeds that are never reported.

If the best value is at the edge of its grid, the grid is extended by half decades.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Tuning:
    """Hold the chosen setting, and the grid and scores that it was chosen from.

    Attributes:
        rate: the best value of the grid.
        rates: the grid.
        scores: mean AUC over the tuning seeds at each value; -inf where a run diverged.
    """

    rate: float
    rates: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def at_edge(self) -> bool:
        """Return whether the best value is at the grid's edge: the optimum may lie outside."""
        return is_edge(self.rate, self.rates)

    @property
    def beyond(self) -> float | None:
        """Return the value to try next: half a decade beyond the edge with the best value.

        None if the best value is inside the grid, or no better than its neighbour, for example
        because nothing is learned.
        """
        if not self.at_edge or not self.scores:
            return None
        lowest = self.rate == self.rates[0]
        best, neighbour = (self.scores[:2], self.scores[:-3:-1])[not lowest]
        return half_decade(self.rate, up=not lowest) if best > neighbour else None


def is_edge(value: float | None, grid: Sequence[float]) -> bool:
    """Return whether a value is the first or last of a grid with several values."""
    return len(grid) > 1 and value in (grid[0], grid[-1])


def half_decade(value: float, *, up: bool) -> float:
    """Move half a decade up or down, rounded to one digit: 1, 3, 10, 30 and so on."""
    exact = value * 10 ** (0.5 if up else -0.5)
    exponent = math.floor(math.log10(exact))
    digit = round(exact / 10.0**exponent)
    return float(f"{10 if digit == 9 else digit}e{exponent}")


def is_coarse(grid: Sequence[float]) -> bool:
    """Return whether neighbours are more than half a decade apart (1 and 3, or 3 and 10)."""
    return any(high / low > 3.4 for low, high in itertools.pairwise(grid))


def extend(
    first: tuple[float, ...], grid: tuple[float, ...], tunings: Sequence[Tuning], limit: int
) -> tuple[float, ...]:
    """Extend a grid by the values that tunings ask for beyond its edges.

    Args:
        first: the original grid.
        grid: the current grid.
        tunings: tunings that may ask for a value (`Tuning.beyond`).
        limit: the most values beyond each edge of the original grid.
    """
    asked = [x for x in (tuning.beyond for tuning in tunings) if x is not None]
    outside = {*grid, *asked} - set(first)
    below = sorted((x for x in outside if x < first[0]), reverse=True)[:limit]
    above = sorted(x for x in outside if x > first[-1])[:limit]
    return tuple(sorted({*first, *below, *above}))


def best_of_grid(grid: Sequence[float], areas: Float[np.ndarray, "value run"]) -> Tuning:
    """Choose the value with the highest mean score; a diverged run puts its value last."""
    means = areas.mean(axis=1)
    scores = np.where(np.isfinite(means), means, -np.inf)
    return Tuning(float(grid[int(np.argmax(scores))]), tuple(grid), tuple(scores.tolist()))
