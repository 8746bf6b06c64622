"""Tuning: the best rate wins, diverged rates come last, an optimum at the edge is said."""

import numpy as np
import pytest
from test_learning import SGD, Descent

from optim4rl.benchmark.tuning import Tuning, choose_rate, tune_rate
from optim4rl.evaluation.curves import HEALTHY, Curves


def curves(*areas: float) -> Curves:
    """Flat curves; NaN is a run that diverged after its first update, far above the others."""
    returns = np.array([[area] * 4 if np.isfinite(area) else [99.0] + [area] * 3 for area in areas])
    diverged_at = np.where(np.isfinite(areas), HEALTHY, 1)
    return Curves(returns, diverged_at, np.arange(1, 5))


RATES = (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("candidates", "best", "at_edge"),
    [
        ([(1.0, 2.0), (3.0, 4.0), (2.0, 3.0)], 0.2, False),
        ([(1.0, 2.0), (3.0, 4.0), (9.0, np.nan)], 0.2, False),
        ([(-5.0, -5.0), (np.nan, 0.0), (np.nan, np.nan)], 0.1, True),
        ([(1.0, 1.0), (2.0, 2.0), (2.0, 4.0)], 0.3, True),
        ([(2.0, 2.0), (1.0, 1.0), (0.0, 0.0)], 0.1, True),
    ],
)
def test_the_best_mean_wins_and_divergence_loses(
    candidates: list[tuple[float, ...]], best: float, at_edge: bool
) -> None:
    """One diverged run is enough to rank a rate below any that has none."""
    tuning = choose_rate(RATES, [curves(*areas) for areas in candidates])
    assert tuning.rate == best
    assert tuning.at_edge == at_edge
    assert tuning.rates == RATES
    expected = [-np.inf if np.isnan(areas).any() else np.mean(areas) for areas in candidates]
    np.testing.assert_allclose(np.array(tuning.scores), np.array(expected))


def test_a_single_rate_has_no_edge() -> None:
    """There is nothing beside it to compare with."""
    assert not Tuning(0.1, (0.1,), (1.0,)).at_edge


def test_tuning_finds_the_rate_of_a_quadratic() -> None:
    """SGD on x^2 / 2 is fastest at rate 1, slow at 0.1 and unstable above 2."""
    tuning = tune_rate(
        Descent(noise=0.0), SGD, None, rates=(0.1, 0.9, 2.5, 1e10), seeds=(0, 1), updates=10
    )
    assert tuning.rate == 0.9
    assert not tuning.at_edge
    assert tuning.scores[3] == -np.inf
    assert tuning.scores[1] > tuning.scores[0] > tuning.scores[2] > -np.inf
