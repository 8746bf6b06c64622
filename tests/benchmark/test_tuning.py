"""Tuning: the best value wins, diverged ones come last, an optimum at the edge is said."""

import numpy as np
import pytest

from optim4rl.benchmark import loop, runs
from optim4rl.benchmark.contender import baseline
from optim4rl.benchmark.loop import Benchmark, Stages, first_jobs, scoring_areas, settle
from optim4rl.benchmark.protocol import Protocol
from optim4rl.benchmark.suites import Suite, SuiteTask
from optim4rl.benchmark.tuning import Tuning, best_of_grid, half_decade, is_coarse, is_edge
from optim4rl.tasks import TaskConfig
from pretended import PretendedPool
from probes import Descent

GRID = (0.1, 0.2, 0.3)


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
def test_the_best_mean_wins_and_divergence_loses(candidates, best, at_edge):
    """One diverged run is enough to rank a value below any that has none."""
    tuning = best_of_grid(GRID, np.array(candidates))
    assert (tuning.rate, tuning.at_edge, tuning.rates) == (best, at_edge, GRID)
    expected = [-np.inf if np.isnan(areas).any() else np.mean(areas) for areas in candidates]
    np.testing.assert_allclose(tuning.scores, expected)


def test_a_single_value_has_no_edge():
    """There is nothing beside it to compare with."""
    assert not Tuning(0.1, (0.1,), (1.0,)).at_edge
    assert [is_edge(x, GRID) for x in (*GRID, None)] == [True, False, True, False]


def test_beyond_an_edge_comes_the_next_half_decade():
    """Where the best value is inside, or no better than its neighbour, there is nothing to try."""
    for rate, scores, expected in (
        (0.1, (3.0, 2.0, 1.0), 0.03),
        (0.3, (1.0, 2.0, 3.0), 1.0),
        (0.2, (1.0, 3.0, 1.0), None),
        (0.1, (2.0, 2.0, 2.0), None),
        (0.3, (0.0, 3.0, 3.0), None),
        (0.1, (1.0, -np.inf, -np.inf), 0.03),
        (0.1, (-np.inf,) * 3, None),
    ):
        assert Tuning(rate, GRID, scores).beyond == expected
    assert Tuning(0.1, (0.1,), (1.0,)).beyond is None
    ladder = [3e-5]
    for _ in range(7):
        ladder.append(half_decade(ladder[-1], up=True))
    assert ladder == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert [half_decade(x, up=False) for x in (0.3, 1.0, 0.01, 0.7)] == [0.1, 0.3, 0.003, 0.2]
    assert [half_decade(x, up=True) for x in (4.0, 2.0, 3.0)] == [10.0, 6.0, 10.0]
    assert is_coarse((0.01, 0.1))
    assert not is_coarse((0.01, 0.03, 0.1))


def test_tuning_finds_the_rate_of_a_quadratic(tmp_path, monkeypatch):
    """SGD on x^2 / 2 is fastest at rate 1, slow at 0.1 and unstable above 2."""
    monkeypatch.setattr(runs, "make_task", lambda config: Descent(noise=0.0))
    pool = PretendedPool(lambda folder, job: job.run(folder)).open(tmp_path, None)
    rates = (0.1, 0.9, 2.5, 1e10)
    suite = Suite("quadratic", (SuiteTask(TaskConfig(), 10),), rates, rates)
    b = Benchmark(suite, (baseline("sgd", rates),), tmp_path, Protocol(2, 2, (1.0,), 1))
    Stages(pool, tmp_path).run(first_jobs(b))
    assert np.isnan(scoring_areas(b, b.contenders[0], 0)[0][3]).all()
    (choice,) = settle(b)["sgd"]
    (tuning,) = choice.each
    assert tuning.rate == choice.one.rate == 0.9
    assert not tuning.at_edge
    assert tuning.scores[3] == -np.inf
    assert tuning.scores[1] > tuning.scores[0] > tuning.scores[2] > -np.inf


def test_a_grid_of_one_is_not_tuned(tmp_path):
    suite = Suite("one", (SuiteTask(TaskConfig(), 10),), (0.1,), (0.1,))
    adam = baseline("adam", (0.1,))
    b = Benchmark(suite, (adam,), tmp_path, Protocol(2, 2, (1.0,), 1))
    assert loop.tuning_runs(b, suite.tasks[0], adam, 0) == []
    assert len(loop.scoring_runs(b, suite.tasks[0], adam, 0)) == 1
    assert {job.what for job in first_jobs(b)} == {"catch: untrained policy"}
