"""What learning costs: levels are reached where they are, and equal time cuts the slower run."""

import dataclasses

import numpy as np
import pytest

from optim4rl.benchmark.cost import (
    WINDOW,
    area_in_time,
    first_part,
    run_seconds,
    task_cost,
    updates_to,
)
from optim4rl.evaluation.curves import Curves

STEPS = 8 * np.arange(1, 101)


def ramp(slopes, seconds=10.0):
    """Returns that are the slope times the update, counted from 1."""
    slopes = np.asarray(slopes)
    returns = slopes[:, None] * np.arange(1.0, 101.0)
    return Curves(
        returns,
        np.full(len(slopes), -1),
        STEPS,
        seconds=np.full(len(slopes), seconds),
    )


def test_a_level_is_reached_by_the_mean_over_the_last_updates():
    """The mean of the last 20 of 1, 2, 3 ... is the update less 9.5."""
    found = updates_to(ramp([1.0, 2.0, 0.1]), 30.0)
    np.testing.assert_array_equal(found, [40.0, 25.0, np.inf])
    np.testing.assert_array_equal(updates_to(ramp([1.0]), -5.0), [WINDOW])


def test_a_run_that_diverges_first_does_not_reach_it():
    curves = ramp([1.0, 1.0])
    curves.returns[1, 30:] = np.nan
    lost = dataclasses.replace(curves, diverged_at=np.array([-1, 30]))
    np.testing.assert_array_equal(updates_to(lost, 30.0), [40.0, np.inf])
    np.testing.assert_array_equal(updates_to(lost, 15.0), [25.0, 25.0])


def test_costs_beside_the_reference():
    """Its final return is 90.5; twice the slope is there at update 55, for twice the time."""
    reference, other = [ramp([1.0, 1.0, 1.0])], [ramp([2.0, 2.0, 0.5], seconds=20.0)]
    cost = task_cost(other, reference)
    assert (cost.env_steps, cost.seconds, cost.ratio) == (800, 20.0, 2.0)
    assert (cost.reached, cost.runs) == (2, 3)
    assert cost.env_steps_to_reach == pytest.approx(8 * 55)
    assert cost.seconds_to_reach == pytest.approx(0.55 * 20.0)
    own = task_cost(reference, reference)
    assert (own.ratio, own.reached, own.env_steps_to_reach) == (1.0, 3, 800.0)
    slow = task_cost([ramp([2.0, 0.5, 0.5])], reference)
    assert np.isinf(slow.env_steps_to_reach)
    assert np.isinf(slow.seconds_to_reach)


def test_in_equal_time_a_slower_run_gets_less_far():
    members = [ramp([1.0, 2.0], seconds=20.0), ramp([3.0, 4.0], seconds=20.0)]
    np.testing.assert_allclose(
        area_in_time(members, 10.0), 25.5 * np.array([[1.0, 2.0], [3.0, 4.0]])
    )
    whole = 50.5 * np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(area_in_time(members, 20.0), whole)
    np.testing.assert_allclose(area_in_time(members, 1e9), whole)
    np.testing.assert_allclose(area_in_time(members, 1e-9), [[1.0, 2.0], [3.0, 4.0]])


def test_one_disturbed_batch_does_not_move_a_time():
    slow = dataclasses.replace(ramp([1.0]), seconds=np.array([1e4]))
    assert run_seconds([ramp([1.0]), ramp([2.0]), slow]) == 10.0
    assert np.isnan(run_seconds([dataclasses.replace(slow, seconds=None)]))


def test_a_run_that_diverges_later_is_healthy_in_its_first_part():
    curves = ramp([1.0, 1.0])
    curves.returns[1, 30:] = np.nan
    lost = dataclasses.replace(curves, diverged_at=np.array([-1, 30]))
    part = first_part(lost, 0.3)
    assert part.returns.shape == (2, 30)
    np.testing.assert_array_equal(part.diverged_at, [-1, -1])
    np.testing.assert_array_equal(first_part(lost, 0.31).diverged_at, [-1, 30])


def test_a_run_that_diverges_later_but_before_an_episode_ended_stays_diverged():
    curves = ramp([1.0, 1.0])
    curves.returns[1] = np.nan
    lost = dataclasses.replace(curves, diverged_at=np.array([-1, 40]))
    np.testing.assert_array_equal(first_part(lost, 0.3).diverged_at, [-1, 29])
