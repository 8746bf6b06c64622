"""What a comparison hangs on: a task that carries it is seen by leaving it out."""

import numpy as np
import pytest

from optim4rl.benchmark.scale import lead_over, make_scale
from optim4rl.benchmark.sensitivity import sensitivity
from optim4rl.evaluation.returns import interquartile_mean, probability_of_improvement


def scores(levels, meta_seeds=3, seeds=8, spread=0.05, seed=0):
    luck = np.random.default_rng(seed).normal(size=(len(levels), meta_seeds, seeds))
    return np.asarray(levels, float)[:, None, None] + spread * luck


def scale_of(tasks, seeds=8):
    """0 is 0 and 1 is 1, nearly."""
    low, high = (scores([level] * tasks, 1, seeds, 1e-6)[:, 0] for level in (0.0, 1.0))
    return make_scale({"adam": high}, low)


def test_the_task_that_carries_a_lead_is_seen():
    """Ahead on one of six and level on the others."""
    x, y = scores([1.0] * 5 + [9.0]), scores([1.0] * 6, 1, seed=1)
    found = sensitivity(x, y, scale_of(6))
    assert found.whole.improvement == pytest.approx(probability_of_improvement(x, y).value)
    assert found.whole.difference == pytest.approx(
        interquartile_mean(x) - interquartile_mean(y), abs=1e-4
    )
    others = [x.improvement for x in found.without[:5]]
    assert found.without[5].improvement < 0.55 < min(others)
    for task, part in enumerate(found.without):
        keep = [i for i in range(6) if i != task]
        lead = lead_over(x[keep], y[keep], scale_of(6).only(keep))
        assert part.difference == pytest.approx(lead.difference.iqm.value, abs=1e-4)
        assert part.improvement == pytest.approx(lead.mean_improvement.value)


def test_drawing_tasks_makes_intervals_wider():
    x, y = scores([0.5, 1.5, 0.5, 1.5]), scores([1.0] * 4, 1, seed=1)
    found = sensitivity(x, y, scale_of(4))
    lead = lead_over(x, y, scale_of(4))
    for drawn, fixed in (
        (found.improvement, lead.mean_improvement),
        (found.difference, lead.difference.iqm),
    ):
        assert drawn.value == pytest.approx(fixed.value, abs=1e-4)
        assert drawn.low <= fixed.low
        assert drawn.high >= fixed.high
        assert drawn.high - drawn.low > 3 * (fixed.high - fixed.low)


def test_tasks_without_a_scale_and_lost_runs_count_where_they_can():
    """A task without a scale is in no difference; a diverged run loses."""
    x, y = scores([1.0, 1.0, 5.0]), scores([1.0, 1.0, 1.0], 1, seed=1)
    scale = make_scale({"adam": scores([1, 1, 0], 1, 8, 1e-6)[:, 0]}, scores([0, 0, 0], 1)[:, 0])
    assert scale.resolved.tolist() == [True, True, False]
    found = sensitivity(x, y, scale)
    assert found.whole.difference == pytest.approx(0.0, abs=0.05)
    assert found.whole.improvement > 0.6
    x[:] = np.nan
    lost = sensitivity(x, y, scale)
    assert (lost.whole.difference, lost.whole.improvement) == (None, 0.0)
    nothing = sensitivity(x, y, make_scale({}, scores([0, 0, 0], 1)[:, 0]))
    assert nothing.difference is None
