"""Reset schedules: who is re-initialised when, and what being re-initialised means."""

from typing import get_args

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from test_meta_gradient import Quadratic, factor_rule

from optim4rl.meta.config import ResetSchedule
from optim4rl.meta.resets import reset_intervals, reset_mask, reset_offsets
from optim4rl.meta.trainer import MetaConfig, MetaTask, init, iterate

sizes = {"agents": st.integers(1, 40), "interval": st.integers(1, 40)}


def draw(schedule, agents, interval, seed=0):
    """Offsets of agents whose lives are equally long."""
    return reset_offsets(schedule, reset_intervals(agents, interval), jax.random.key(seed))


def masks(offsets, intervals, iterations):
    """Resets `[iteration, agent]`, in numpy; `test_mask` ties it to `reset_mask`."""
    t = np.arange(iterations)[:, None]
    return (t % intervals == np.asarray(offsets)) & (t > 0)


@pytest.mark.parametrize("schedule", get_args(ResetSchedule))
@pytest.mark.parametrize("shortest", [None, 3])
def test_mask(schedule, shortest):
    """An agent is due when the iteration is its offset modulo its interval, but at the start."""
    intervals = reset_intervals(5, 7, shortest)
    offsets = reset_offsets(schedule, intervals, jax.random.key(0))
    found = jax.vmap(lambda t: reset_mask(t, offsets, intervals))(jnp.arange(30))
    np.testing.assert_array_equal(found, masks(offsets, intervals, 30))
    assert not found[0].any()


@settings(deadline=None, max_examples=50)
@given(agents=st.integers(2, 40), shortest=st.integers(1, 40), more=st.integers(0, 100))
def test_intervals_are_evenly_spread_in_logarithm(agents, shortest, more):
    """From the shortest to the longest, to rounding; the order is the same at any length."""
    longest = shortest + more
    intervals = reset_intervals(agents, longest, shortest)
    expected = np.geomspace(shortest, longest, agents)
    assert abs(np.sort(intervals) - expected).max() <= 0.5 + 1e-6
    assert (intervals.min(), intervals.max()) == (shortest, longest)


def test_equal_lives_have_one_interval():
    np.testing.assert_array_equal(reset_intervals(3, 7), [7, 7, 7])
    np.testing.assert_array_equal(reset_intervals(1, 7, 2), [7])


def test_each_agent_lives_its_own_length():
    """Ages of staggered agents: from the first reset on, whole lives of the agent's interval."""
    intervals = reset_intervals(6, 20, 4)
    offsets = np.asarray(reset_offsets("staggered", intervals, jax.random.key(0)))
    resets = masks(offsets, intervals, 200)
    age = np.zeros(6, int)
    for t in range(200):
        age = np.where(resets[t], 0, age)
        # Until its first reset an agent is as old as the training.
        expected = np.where(t < offsets + intervals * (offsets == 0), t, (t - offsets) % intervals)
        np.testing.assert_array_equal(age, expected)
        age = age + 1
    for lengths, interval in zip(resets.T, intervals, strict=True):
        assert set(np.diff(np.flatnonzero(lengths))) == {interval}


@pytest.mark.parametrize(("agents", "shortest", "longest"), [(16, 20, 100), (32, 5, 60)])
def test_at_any_time_mixed_lives_are_at_all_stages(agents, shortest, longest):
    """Once all have been reset: young, middle-aged and old among the short and the long lives."""
    intervals = reset_intervals(agents, longest, shortest)
    offsets = np.asarray(reset_offsets("staggered", intervals, jax.random.key(0)))
    t = np.arange(longest, 20 * longest)[:, None]
    stage = (t - offsets) % intervals / intervals
    # As far from uniform as random draws would be on average, never far beyond.
    ordered = np.sort(stage, axis=1)
    steps = np.arange(agents + 1) / agents
    distance = np.maximum(abs(ordered - steps[:-1]), abs(ordered - steps[1:])).max(axis=1)
    assert distance.mean() < 1 / np.sqrt(agents)
    assert distance.max() < 2.2 / np.sqrt(agents)
    for long in (False, True):
        assert np.ptp(stage[:, (intervals > np.median(intervals)) == long], axis=1).min() > 0.3


@settings(deadline=None, max_examples=20)
@given(**sizes)
def test_staggered_agents_are_evenly_spaced(agents, interval):
    """The gaps between successive resets, around the interval, differ by one at most."""
    offsets = np.asarray(draw("staggered", agents, interval))
    assert offsets.min() == 0
    assert offsets.max() < interval
    gaps = np.diff(offsets, append=offsets[0] + interval)
    assert gaps.max() - gaps.min() <= 1
    assert gaps.sum() == interval


@pytest.mark.parametrize("schedule", ["staggered", "random", "synchronous"])
@settings(deadline=None, max_examples=10)
@given(**sizes)
def test_every_agent_is_reset_exactly_once_per_interval(schedule, agents, interval):
    """In any window of one interval, wherever it starts after the first iteration."""
    offsets = draw(schedule, agents, interval)
    resets = masks(offsets, interval, 3 * interval + 1)[1:]
    windows = np.lib.stride_tricks.sliding_window_view(resets, interval, axis=0)
    assert (windows.sum(axis=-1) == 1).all()


def test_synchronous_agents_are_reset_together():
    """All of them at every multiple of the interval."""
    resets = masks(draw("synchronous", 4, 3), 3, 10)
    np.testing.assert_array_equal(resets.all(axis=1), [t in (3, 6, 9) for t in range(10)])
    np.testing.assert_array_equal(resets.any(axis=1), resets.all(axis=1))


def test_never_means_never():
    """No agent at any iteration."""
    assert not masks(draw("never", 4, 3), 3, 100).any()


def test_random_offsets_are_uniform_and_follow_the_key():
    """Every index occurs about equally often; the same key draws the same indices."""
    drawn = [draw("random", 4000, 8, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    counts = np.bincount(np.asarray(drawn[0]), minlength=8)
    assert counts.size == 8
    # Five standard deviations of a binomial count around 500.
    assert abs(counts - 500).max() < 5 * np.sqrt(4000 / 8 * 7 / 8)


@pytest.fixture(scope="module")
def pipeline():
    """Three agents after each of seven meta-iterations, with reset indices 0, 1 and 2 of 3."""
    spec, weights = factor_rule()
    # The first coordinate's gradient is always 0 and the weights stay what they are, so that its
    # hidden state depends on the agent's age alone.
    tasks = (MetaTask(Quadratic((0.0, 0.5, 1.0)), 0.1),)
    config = MetaConfig(agents=3, inner_updates=2, reset_interval=3, meta_learning_rate=1e-30)

    @jax.jit
    def run(offsets):
        def body(state, _):
            state, _ = iterate(spec, tasks, config, state)
            return state, state.estimators[0].agents

        start = init(spec, tasks, config, weights)
        estimators = (start.estimators[0]._replace(offsets=offsets),)
        start = start._replace(estimators=estimators)
        return jax.lax.scan(body, start, length=7)[1]

    return {schedule: run(draw(schedule, 3, 3)) for schedule in ("staggered", "never")}


def test_a_reset_agent_is_fresh_and_the_others_are_untouched(pipeline):
    """Ages count updates since the last reset; an agent not yet reset lives as if none were."""
    agents, undisturbed = pipeline["staggered"], pipeline["never"]
    resets = masks([0, 1, 2], 3, 7)
    expected = np.zeros(3, int)
    for t in range(7):
        expected = np.where(resets[t], 0, expected) + 2
        np.testing.assert_array_equal(agents.rule.age[t], expected)
        # The quadratic's actor counts rollouts: K inner ones and one of validation an iteration.
        np.testing.assert_array_equal(agents.actor[t], expected // 2 * 3)
    np.testing.assert_array_equal(undisturbed.rule.age[:, 0], 2 * np.arange(1, 8))
    # Nobody is reset at iteration 0; only the agent of index 1 is at iteration 1.
    np.testing.assert_array_equal(agents.params[0], undisturbed.params[0])
    for leaf, other in zip(jax.tree.leaves(agents), jax.tree.leaves(undisturbed), strict=True):
        np.testing.assert_array_equal(leaf[1][::2], other[1][::2])
    assert (agents.params[1][1] != undisturbed.params[1][1]).any()


def test_a_reset_clears_the_optimizer_state(pipeline):
    """The hidden state of a coordinate without a gradient is that of its age, whatever was."""
    rule = jax.tree.map(np.asarray, pipeline["staggered"].rule)
    hidden = rule.carries[0][0][..., 0]
    by_age = {age: hidden[rule.age == age] for age in np.unique(rule.age)}
    assert by_age.keys() == {2, 4, 6}
    for states in by_age.values():
        assert len(states) > 1
        np.testing.assert_array_equal(states, np.broadcast_to(states[:1], states.shape))
    assert not np.array_equal(by_age[2][0], by_age[4][0])


def test_every_life_starts_anew(pipeline):
    """Successive lives of one agent start from different parameters."""
    # Agent 1 is reset at iterations 1 and 4; two small updates later it is near where it began.
    lives = np.asarray(pipeline["staggered"].params)[[0, 1, 4], 1]
    assert abs(np.diff(lives, axis=0)).max(axis=1).min() > 0.1
