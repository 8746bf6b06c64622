"""A suite's statistics: the scale's laws, settings for each and for all, profiles, standings."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from optim4rl.benchmark import scale as benchmark
from optim4rl.benchmark.scale import (
    Scale,
    choose_for_all,
    make_scale,
    normalise_scores,
    performance_profile,
    stand,
)
from optim4rl.benchmark.tuning import best_of_grid
from optim4rl.evaluation.returns import Estimate

TASKS, META_SEEDS, SEEDS = 3, 2, 6
RNG = np.random.default_rng(0)
LOW = RNG.normal(-1.0, 0.05, (TASKS, SEEDS))
HIGH = LOW + np.array([[1.0], [10.0], [0.5]]) + RNG.normal(0, 0.05, (TASKS, SEEDS))
SCALE = Scale(LOW, HIGH, ("adam",) * TASKS, np.ones(TASKS, bool))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(benchmark, "RESAMPLES", 400)


def values(estimate):
    return estimate.value, estimate.low, estimate.high


# The scale


def test_the_best_baseline_of_each_task_is_its_one():
    poor, good = HIGH - 0.3, HIGH
    mixed = np.stack([good[0] + 0.1, poor[1], poor[2]])
    scale = make_scale({"adam": good, "rmsprop": mixed}, LOW)
    assert scale.best == ("rmsprop", "adam", "adam")
    np.testing.assert_array_equal(scale.high, np.stack([mixed[0], good[1], good[2]]))
    assert scale.resolved.all()


def test_a_baseline_with_a_diverged_run_is_nobodys_one():
    diverged = HIGH + 5.0
    diverged[0, 0] = np.nan
    assert make_scale({"adam": HIGH, "rmsprop": diverged}, LOW).best == (
        "adam",
        "rmsprop",
        "rmsprop",
    )


@pytest.mark.parametrize("gap", [0.0, -1.0, np.nan])
def test_a_task_that_no_baseline_learns_has_no_scale(gap):
    high = HIGH.copy()
    high[1] = LOW[1] + gap + RNG.normal(0, 0.3, SEEDS)
    scale = make_scale({"adam": high}, LOW)
    np.testing.assert_array_equal(scale.resolved, [True, False, True])
    scores = high[:, None, :] + 1.0
    normalised = normalise_scores(scores, scale)
    assert normalised.tasks[1] is None
    kept = Scale(LOW[::2], high[::2], ("adam",) * 2, np.ones(2, bool))
    assert normalised.mean.value == pytest.approx(normalise_scores(scores[::2], kept).mean.value)
    assert np.isnan(scale.apply(scores)[1]).all()


def test_without_any_scale_there_is_no_mean():
    scale = make_scale({"adam": LOW - 1.0}, LOW)
    normalised = normalise_scores(HIGH[:, None, :], scale)
    assert normalised.tasks == (None,) * TASKS
    assert normalised.mean is None
    assert stand(HIGH[:, None, :], HIGH[:, None, :], scale, scale, None).profile is None


# Normalised scores


def test_the_untrained_policy_is_0_and_the_best_baseline_is_1_without_any_doubt():
    """Their own runs make the scale, so that resampling cannot move them."""
    for runs, expected in ((LOW, 0.0), (HIGH, 1.0)):
        normalised = normalise_scores(runs[:, None, :], SCALE)
        for estimate in (*normalised.tasks, normalised.mean):
            np.testing.assert_allclose(values(estimate), expected, atol=1e-12)


def test_known_means():
    """Halfway between 0 and 1 on the first task, at twice the way on the others."""
    share = np.array([0.5, 2.0, 2.0])[:, None]
    scores = (LOW + share * (HIGH - LOW))[:, None, :]
    normalised = normalise_scores(scores, SCALE)
    for estimate, expected in zip(normalised.tasks, share[:, 0], strict=True):
        np.testing.assert_allclose(values(estimate), expected)
    np.testing.assert_allclose(values(normalised.mean), 1.5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(0.1, 100.0), min_size=TASKS, max_size=TASKS),
    st.lists(st.floats(-50.0, 50.0), min_size=TASKS, max_size=TASKS),
)
def test_units_of_return_do_not_matter(factors, offsets):
    factor, offset = np.array(factors)[:, None], np.array(offsets)[:, None]
    scores = np.random.default_rng(1).normal(size=(TASKS, META_SEEDS, SEEDS))
    other = Scale(factor * LOW + offset, factor * HIGH + offset, SCALE.best, SCALE.resolved)
    a = normalise_scores(scores, SCALE)
    b = normalise_scores(factor[..., None] * scores + offset[..., None], other)
    np.testing.assert_allclose(values(a.mean), values(b.mean), rtol=1e-6, atol=1e-9)


def test_the_interval_holds_the_luck_of_the_baseline():
    """The same certain score is less certain on a scale of noisier runs."""
    scores = np.zeros((TASKS, 1, SEEDS)) + 3.0
    noisy = HIGH + RNG.normal(0, 0.3, HIGH.shape)
    widths = []
    for high in (HIGH, noisy):
        mean = normalise_scores(scores, Scale(LOW, high, SCALE.best, SCALE.resolved)).mean
        widths.append(mean.high - mean.low)
        assert mean.low < mean.value < mean.high
    assert widths[1] > 2 * widths[0]


def test_meta_seeds_are_resampled():
    scores = np.stack([HIGH, HIGH + (HIGH - LOW)], axis=1)  # One of 1, one of 2.
    mean = normalise_scores(scores, SCALE).mean
    np.testing.assert_allclose(values(mean), (1.5, 1.0, 2.0))


def test_a_difference_is_in_units_of_the_scale():
    unit = HIGH - LOW
    x, y = (HIGH + 0.5 * unit)[:, None, :], (HIGH - 0.25 * unit)[:, None, :]
    lead = normalise_scores(x, SCALE, minus=y)
    for estimate in (*lead.tasks, lead.mean):
        np.testing.assert_allclose(values(estimate), 0.75)


def test_a_diverged_run_leaves_no_mean_and_no_zero():
    scores = HIGH[:, None, :].copy()
    scores[0, 0, 0] = np.nan
    normalised = normalise_scores(scores, SCALE)
    assert np.isnan(values(normalised.tasks[0])[:2]).all()
    assert np.isnan(normalised.mean.value)
    assert normalised.tasks[1].value == pytest.approx(1.0)


# Settings


def test_each_task_has_its_own_best_and_all_have_the_best_mean():
    """The middle value is best for no task but never bad; the first is ruinous on the second."""
    means = np.array([[10.0, 9.0, 1.0], [-0.5, 0.8, 0.9]])  # Over a scale of 10 and one of 1.
    areas = np.repeat(means[:, :, None], 2, axis=2) + np.array([-0.1, 0.1])
    grid = (0.1, 0.2, 0.3)
    assert [best_of_grid(grid, task).rate for task in areas] == [0.1, 0.3]
    one = choose_for_all((grid, grid), list(areas), np.zeros(2), np.array([10.0, 1.0]))
    assert one.rate == 0.2
    assert not one.at_edge
    np.testing.assert_allclose(one.scores, [0.25, 0.85, 0.5])


def test_a_setting_that_diverges_anywhere_is_not_for_all():
    areas = np.ones((2, 3, 2)) * np.array([1.0, 2.0, 3.0])[None, :, None]
    areas[1, 2, 0] = np.nan
    one = choose_for_all(((1.0, 2.0, 3.0),) * 2, list(areas), np.zeros(2), np.ones(2))
    assert one.rate == 2.0
    assert one.scores[2] == -np.inf


def test_the_one_setting_is_one_that_all_tasks_have():
    """The first task's grid was extended to 0.3, where it is better still."""
    areas = [np.array([[1.0], [2.0], [9.0]]), np.array([[2.0], [1.5]])]
    one = choose_for_all(((0.03, 0.1, 0.3), (0.03, 0.1)), areas, np.zeros(2), np.ones(2))
    assert (one.rate, one.rates) == (0.1, (0.03, 0.1))


def test_tasks_that_nothing_learns_have_no_say_in_the_one_setting():
    areas = np.array([[[1.0], [0.0]], [[-100.0], [100.0]]])
    low, high = np.array([0.0, 100.0]), np.array([1.0, 100.0])
    assert choose_for_all(((0.1, 1.0),) * 2, list(areas), low, high).rate == 0.1
    # If they are all such tasks, returns are compared as they are.
    assert choose_for_all(((0.1, 1.0),) * 2, list(areas), high, high).rate == 1.0


# Profiles


def test_a_profile_is_the_share_of_runs_above_each_point():
    scores = RNG.normal(0.8, 0.3, (TASKS, META_SEEDS, SEEDS))
    scores[0, 0, 0] = np.nan
    points = np.array([-np.inf, 0.0, 0.5, 0.8, 1.1, np.inf])
    profile = performance_profile(scores, points)
    expected = [np.mean([x > point for x in scores.ravel()]) for point in points]
    np.testing.assert_allclose(profile.share, expected)
    assert profile.share[0] == 1 - 1 / scores.size  # The diverged run is above nothing.
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    assert (np.diff(profile.share) <= 0).all()


def test_a_profile_of_equal_runs_is_certain():
    profile = performance_profile(np.ones((TASKS, META_SEEDS, SEEDS)), np.array([0.9, 1.1]))
    for curve in (profile.share, profile.low, profile.high):
        np.testing.assert_allclose(curve, [1.0, 0.0])


# Standings


def test_a_better_optimizer_stands_better():
    unit = (HIGH - LOW)[:, None, :]
    better = HIGH[:, None, :] + np.array([0.4, 0.6])[None, :, None] * unit
    standing = stand(better, better, SCALE, SCALE, HIGH[:, None, :])
    assert standing.lead.mean_improvement == Estimate(1.0, 1.0, 1.0)
    assert len(standing.lead.improvement) == TASKS
    assert standing.lead.difference.mean.value == pytest.approx(0.5)
    assert standing.learned is None
    assert standing.auc.mean.value == pytest.approx(1.5)
    assert (standing.diverged, standing.runs) == (0, better.size)
    assert standing.members == pytest.approx((1.4, 1.6))
    better[0, 0, :3] = np.nan
    diverged = stand(better, better, SCALE, SCALE, HIGH[:, None, :])
    assert diverged.diverged == 3
    assert np.isnan(diverged.members[0])
    assert diverged.members[1] == pytest.approx(1.6)
    assert diverged.lead.mean_improvement.value == pytest.approx(1 - 3 / better.size)


def test_the_reference_is_not_compared_with_itself():
    standing = stand(HIGH[:, None, :], HIGH[:, None, :], SCALE, SCALE, None)
    assert standing.lead is None


def test_what_is_learned_is_the_lead_over_the_control():
    unit = (HIGH - LOW)[:, None, :]
    trained, untrained = HIGH[:, None, :] + 0.5 * unit, HIGH[:, None, :] - 0.25 * unit
    standing = stand(trained, trained, SCALE, SCALE, HIGH[:, None, :], untrained)
    assert standing.lead.difference.mean.value == pytest.approx(0.5)
    assert standing.learned.difference.mean.value == pytest.approx(0.75)
    assert standing.learned.mean_improvement == Estimate(1.0, 1.0, 1.0)


def test_one_seed_has_a_scale_and_no_interval():
    untrained, adam = np.zeros((2, 1)), np.full((2, 1), 2.0)
    scale = make_scale({"adam": adam}, untrained)
    assert scale.resolved.tolist() == [True, True]
    found = normalise_scores(np.full((2, 3, 1), 1.0), scale)
    assert [x.value for x in (*found.tasks, found.mean)] == [0.5, 0.5, 0.5]
    assert not any(x.has_interval for x in (*found.tasks, found.mean))
