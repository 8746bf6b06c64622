"""Scores and their statistics: parity with reference formulae, laws, honest verdicts."""

import math

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import (
    Estimate,
    area_under_curve,
    bootstrap_interval,
    compare,
    difference_of_iqm,
    failure_rate,
    final_return,
    interquartile_mean,
    normalise,
    probability_of_improvement,
    stuck_rate,
)

NAN = float("nan")
FINITE = st.floats(-100, 100, width=32)


def curves(rows, diverged_at=None):
    returns = np.asarray(rows, dtype=np.float64)
    runs, time = returns.shape
    diverged = np.asarray([-1] * runs if diverged_at is None else diverged_at)
    return Curves(returns, diverged, np.arange(time))


def scores(meta_seed_means, seeds=6, spread=0.002, seed=0):
    """One task; meta-seeds with the given means, evaluation seeds close around them."""
    noise = np.random.default_rng(seed).normal(size=(1, len(meta_seed_means), seeds))
    return np.asarray(meta_seed_means, dtype=np.float64)[None, :, None] + spread * noise


# Scores of single runs


def test_final_return_and_area_of_healthy_and_diverged_runs():
    given_curves = curves([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, NAN]], [-1, 3])
    np.testing.assert_array_equal(final_return(given_curves, last=2), [2.5, NAN])
    np.testing.assert_array_equal(final_return(given_curves), [1.5, NAN])
    np.testing.assert_array_equal(area_under_curve(given_curves), [1.5, NAN])
    with pytest.raises(ValueError, match="last: 0"):
        final_return(given_curves, last=0)


def test_normalise_maps_floor_and_ceiling_to_0_and_1():
    np.testing.assert_allclose(
        normalise(np.array([2.0, 4.0, 6.0, NAN]), 2.0, 4.0), [0.0, 1.0, 2.0, NAN]
    )
    for floor, ceiling in ((1.0, 1.0), (2.0, 1.0), (NAN, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="ceiling"):
            normalise(np.zeros(1), floor, ceiling)


# Rates


def test_rates_count_diverged_runs():
    rows = [[1.0, 1.0], [0.8, 0.8], [0.95, 0.95], [1.0, NAN]]
    given_curves = curves(rows, [-1, -1, -1, 1])
    assert failure_rate(given_curves).value == 0.25
    assert stuck_rate(given_curves, floor=0.0, ceiling=1.0).value == 0.5
    assert stuck_rate(given_curves, floor=0.0, ceiling=1.0, threshold=0.7).value == 0.25


@pytest.mark.parametrize(("hits", "count"), [(0, 96), (1, 96), (19, 48), (48, 48)])
def test_rates_carry_the_wilson_interval(hits, count):
    rows = np.ones((count, 2))
    rows[:hits, 1] = NAN
    rate = failure_rate(curves(rows, [1] * hits + [-1] * (count - hits)))
    z, share = stats.norm.ppf(0.975), hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    assert rate.low == pytest.approx(centre - half, abs=1e-12)
    assert rate.high == pytest.approx(centre + half, abs=1e-12)
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert (rate.low, rate.high) == (expected.low, expected.high)


# Aggregates


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3), elements=FINITE))
def test_interquartile_mean_agrees_with_the_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(
        stats.trim_mean(values, 0.25, axis=None), abs=1e-9
    )


@given(st.lists(FINITE, min_size=1, max_size=20), st.integers(0, 20))
def test_interquartile_mean_is_nan_iff_a_diverged_run_is_left_in_the_middle(values, diverged):
    mixed = np.array(values + [NAN] * diverged)
    assert math.isnan(interquartile_mean(mixed)) == (diverged > mixed.size // 4)


def test_a_trimmed_diverged_run_counts_as_worst_not_as_missing():
    assert interquartile_mean(np.array([NAN, 1.0, 2.0, 30.0])) == 1.5


@given(st.integers(0, 100))
def test_bootstrap_is_deterministic_and_orders_its_bounds(seed):
    values = np.random.default_rng(seed).normal(size=(2, 3, 5))
    first, again = (bootstrap_interval(values, resamples=100, seed=seed) for _ in range(2))
    assert first == again
    assert first.low <= first.high
    assert first.value == interquartile_mean(values)


def test_bootstrap_covers_the_mean_of_a_normal_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        sample = rng.normal(size=(1, 1, 40))
        interval = bootstrap_interval(sample, statistic="mean", resamples=500, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_bootstrap_never_resamples_tasks():
    values = np.broadcast_to(np.array([0.0, 1.0, 5.0])[:, None, None], (3, 2, 4)).copy()
    assert bootstrap_interval(values, statistic="mean") == Estimate(2.0, 2.0, 2.0)


def test_a_seed_that_is_lucky_for_every_meta_seed_widens_the_interval_as_much_as_alone():
    luck = np.random.default_rng(0).normal(size=(1, 1, 10))
    alone = bootstrap_interval(luck, statistic="mean")
    shared = bootstrap_interval(np.repeat(luck, 8, axis=1), statistic="mean")
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_meta_seeds_are_the_same_optimizers_on_every_task():
    effect = np.array([0.0, 1.0, 2.0, 3.0])[None, :, None]
    one = bootstrap_interval(effect, statistic="mean")
    many = bootstrap_interval(np.repeat(effect, 9, axis=0), statistic="mean")
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_a_bound_is_nan_where_diverged_runs_leave_it_open():
    values = np.linspace(0, 1, 8).reshape(1, 1, 8)
    values[0, 0, 0] = NAN
    interval = bootstrap_interval(values)
    assert math.isfinite(interval.value)
    assert math.isfinite(interval.high)
    assert math.isnan(interval.low)


@settings(max_examples=50)
@given(
    hnp.arrays(np.float64, (1, 2, 3), elements=st.integers(-3, 3).map(float)),
    hnp.arrays(np.float64, (1, 1, 4), elements=st.integers(-3, 3).map(float)),
)
def test_probability_of_improvement_is_the_mann_whitney_u(x, y):
    u = stats.mannwhitneyu(x.ravel(), y.ravel(), method="asymptotic").statistic
    result = probability_of_improvement(x, y, resamples=50)
    assert result.value == pytest.approx(u / (x.size * y.size))
    mirrored = probability_of_improvement(y, x, resamples=50)
    assert result.value + mirrored.value == pytest.approx(1.0)
    assert 0 <= result.low <= result.high <= 1


def test_probability_of_improvement_averages_over_tasks_and_ranks_divergence_last():
    x = np.array([[[1.0, 2.0]], [[NAN, NAN]]])
    y = np.array([[[0.0, 0.0]], [[-5.0, NAN]]])
    assert probability_of_improvement(x, y).value == pytest.approx((1.0 + 0.25) / 2)


def test_joint_seeds_leave_nothing_uncertain_between_identical_twins():
    x = np.random.default_rng(0).normal(size=(2, 1, 10))
    twins = compare(x, x.copy(), "A", "B").difference
    assert (twins.low, twins.high) == pytest.approx((0.0, 0.0), abs=1e-12)
    fewer = compare(x, x[..., :9], "A", "B").difference
    assert fewer.high - fewer.low > 0.1


def test_the_difference_of_interquartile_means_is_resampled_as_its_sides_are():
    """Against scores that are constant, the interval is that of the one side."""
    x = np.random.default_rng(1).standard_t(2, size=(2, 3, 8))
    found = difference_of_iqm(x, np.zeros((2, 1, 3)))
    alone = bootstrap_interval(x)
    assert found.value == pytest.approx(alone.value)
    assert found.low == pytest.approx(alone.low, abs=0.1)
    assert found.high == pytest.approx(alone.high, abs=0.1)


# Verdicts


def test_a_clear_difference_says_by_how_much_and_how_sure():
    result = compare(
        scores([0.7, 0.72, 0.74, 0.73]), scores([0.9, 0.91, 0.88, 0.89]), "Linear", "full"
    )
    assert result.verdict == "clear"
    assert result.units == "4 + 4 meta-seeds and 6 evaluation seeds"
    p = result.test.p
    assert result.difference.value == pytest.approx(-0.170, abs=0.002)
    assert result.difference.low < result.difference.value < result.difference.high < 0
    assert result.improvement.value == 0.0
    assert result.sentence.startswith("Linear is lower than full by 0.17 AUC (95 % interval -0.2")
    assert result.sentence.endswith(f"Welch's test over {result.units} p = {p:.2g}): clear.")


def test_comparing_the_other_way_round_mirrors_everything():
    x, y = scores([0.7, 0.72, 0.74]), scores([0.9, 0.91, 0.88], seed=1)
    there, back = compare(x, y, "X", "Y"), compare(y, x, "Y", "X")
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.test.p == back.test.p
    assert there.verdict == back.verdict


@pytest.mark.parametrize(
    ("n", "m", "verdict"),
    [
        (1, 2, "not clear"),
        (2, 2, "not clear"),
        (1, 3, "clear"),
        (3, 3, "clear"),
        (4, 4, "clear"),
        (10, 12, "clear"),
    ],
)
def test_full_separation_is_worth_as_much_as_the_counts_allow(n, m, verdict):
    x, y = scores(0.1 + 0.01 * np.arange(n)), scores(10 + 0.01 * np.arange(m))
    assert compare(x, y, "X", "Y").verdict == verdict


def test_one_fixed_optimizer_is_no_meta_seed_among_others():
    """Copies of one optimizer are one, and a failed meta-seed of five changes no verdict."""
    learned, adam = scores([0.7, 0.72, 0.74, 0.71, 0.1]), scores([1.4], seed=1)
    for there, back in ((learned, adam), (np.repeat(learned, 2, axis=0), adam.repeat(2, axis=0))):
        result = compare(there, back, "Learned", "Adam")
        assert (result.verdict, result.units) == ("clear", "5 meta-seeds and 6 evaluation seeds")
        mirrored = compare(back, there, "Adam", "Learned").test
        assert mirrored.p == pytest.approx(result.test.p)
        assert mirrored.difference == pytest.approx(-result.test.difference)
    result = compare(learned, adam, "Learned", "Adam")
    copies = np.repeat(adam, 5, axis=1)
    assert compare(learned, copies, "Learned", "Untrained").test.p == result.test.p
    learned[0, 0, 0] = NAN
    ranked = compare(learned, adam, "Learned", "Adam")
    assert "on ranks over 5 meta-seeds" in ranked.sentence
    assert ranked.verdict == "clear"


def test_not_clear_gives_its_reason():
    x, y = scores([0.7, 0.9, 0.8, 0.85]), scores([0.75, 0.8, 0.9, 0.86])
    result = compare(x, y, "X", "Y", metric="final return")
    assert result.verdict == "not clear"
    assert "final return (95 %" in result.sentence
    assert result.sentence.endswith("not clear; the interval includes 0; p is above 0.05.")


def test_an_interval_alone_is_not_enough():
    erratic, steady = scores([0.5, 0.6, 0.9, 0.93]), scores([0.901, 0.958, 0.960, 0.956])
    result = compare(erratic, steady, "Linear", "full")
    assert result.difference.high < 0
    assert result.verdict == "not clear"
    assert result.sentence.endswith("not clear; p is above 0.05.")


def test_two_single_optimizers_are_compared_over_evaluation_seeds():
    x, y = scores([0.8], seeds=8), scores([0.9], seeds=8, seed=1)
    result = compare(x, y, "RMSProp", "Adam")
    assert result.units == "8 evaluation seeds"
    assert result.verdict == "clear"
    assert "clear for this one optimizer on either side" in result.sentence
    assert compare(x[..., :1], y[..., :1], "RMSProp", "Adam").verdict == "not clear"


@pytest.mark.parametrize("tasks", [1, 3])
def test_one_run_has_no_interval_and_is_no_evidence(tasks):
    one, many = np.full((tasks, 1, 1), 0.9), np.full((tasks, 4, 6), 0.1)
    assert bootstrap_interval(one).value == 0.9
    assert not bootstrap_interval(one).has_interval
    assert not bootstrap_interval(np.full((tasks, 1, 1), NAN)).has_interval
    for x, y in ((one, one - 0.8), (one, many), (many, one)):
        better, result = probability_of_improvement(x, y), compare(x, y, "X", "Y")
        assert better.value in (0.0, 1.0)
        assert not better.has_interval
        assert not result.difference.has_interval
        assert result.verdict == "not clear"
        assert "(no interval from one run; " in result.sentence
        assert "one run shows no spread" in result.sentence
    for two in (many[:, :2, :1], many[:, :1, :2]):
        assert bootstrap_interval(two).has_interval
        assert compare(two, many, "X", "Y").improvement.has_interval


def test_divergence_is_reported_and_judged_by_ranks():
    x, y = scores([0.7, 0.72, 0.74, 0.73]), scores([0.9, 0.91, 0.88, 0.89])
    x[0, 2, 3] = NAN
    result = compare(x, y, "Linear", "full")
    assert result.diverged == (1, 0)
    assert math.isnan(result.difference.value)
    assert result.verdict == "clear"
    assert "1 of 24 runs of Linear and 0 of 24 runs of full diverged" in result.sentence
    assert "Welch's test on ranks over 4 + 4 meta-seeds" in result.sentence


def test_one_diverged_run_in_each_meta_seed_does_not_outweigh_all_others():
    better, worse = scores([0.9, 0.91, 0.88, 0.89]), scores([0.7, 0.72, 0.74, 0.73])
    better[0, :, 0] = NAN
    result = compare(better, worse, "X", "Y")
    assert result.improvement.value == pytest.approx(5 / 6)
    assert result.test.difference > 0


def test_everything_diverged_is_no_difference():
    nothing = np.full((1, 4, 3), NAN)
    result = compare(nothing, nothing, "X", "Y")
    assert result.verdict == "not clear"
    assert result.improvement == Estimate(0.5, 0.5, 0.5)


def test_large_returns_are_written_out():
    sentence = compare(scores([1391.0] * 4), scores([252.0] * 4), "X", "Y").sentence
    assert sentence.startswith("X is higher than Y by 1139 AUC (95 % interval 1139 to 1139;")


def test_identical_scores_are_said_to_be_the_same():
    x = scores([0.7, 0.8, 0.9])
    assert compare(x, x.copy(), "X", "Y").sentence.startswith("X and Y have the same AUC")


def test_scores_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"scores: shape \(1, 0, 2\)"):
        bootstrap_interval(np.zeros((1, 0, 2)))
    with pytest.raises(ValueError, match="score of a diverged run is NaN"):
        bootstrap_interval(np.full((1, 1, 2), np.inf))
    with pytest.raises(ValueError, match="empty"):
        interquartile_mean(np.zeros(0))


def test_scores_of_different_tasks_are_refused_without_annotations_being_enforced():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for function in (probability_of_improvement, lambda x, y: compare(x, y, "X", "Y")):
            with pytest.raises(ValueError, match="y: 3 tasks, but x has 2"):
                function(np.zeros((2, 1, 4)), np.zeros((3, 1, 4)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_equal_optimizers_are_rarely_called_different():
    rng = np.random.default_rng(0)
    called_clear = 0
    for trial in range(200):
        x, y = (rng.normal(size=(1, 4, 1)) + 0.5 * rng.normal(size=(1, 4, 6)) for _ in range(2))
        called_clear += compare(x, y, "X", "Y", resamples=200, seed=trial).verdict == "clear"
    assert called_clear <= 0.06 * 200
