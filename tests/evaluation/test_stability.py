"""Stability metrics: hand-computed cases, invariances, and the traps of the definitions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.stability import (
    METRICS,
    Stability,
    drawdown,
    lower_cvar,
    smooth,
    stability,
    upper_cvar,
)

NAN = float("nan")
KEYS = tuple(metric.key for metric in METRICS)
WITHIN_RUNS = KEYS[:3]
CURVES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 60)),
    elements=st.floats(-100, 100, width=32),
)


def curves(rows, diverged_at=None):
    returns = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    runs, time = returns.shape
    diverged = np.asarray([-1] * runs if diverged_at is None else diverged_at)
    return Curves(returns, diverged, np.arange(time))


def values(result):
    return np.array([getattr(result, key) for key in KEYS])


def test_descriptors_name_the_fields_in_order():
    assert tuple(field.name for field in dataclasses.fields(Stability))[:5] == KEYS


def test_cvar_is_the_mean_of_a_twentieth_of_the_samples():
    sample = np.random.default_rng(0).permutation(100)[None].astype(np.float64)
    np.testing.assert_array_equal(lower_cvar(sample), [2.0])  # mean of 0..4
    np.testing.assert_array_equal(upper_cvar(sample), [97.0])  # mean of 95..99
    np.testing.assert_array_equal(lower_cvar(np.arange(140.0)[None]), [3.0])  # 7 samples, not 8
    np.testing.assert_array_equal(lower_cvar(np.arange(20.0)[None]), [0.0])
    np.testing.assert_array_equal(lower_cvar(np.arange(21.0)[None]), [0.5])


def test_drawdown_is_the_fall_below_the_highest_so_far():
    rows = np.array([[1.0, 3.0, 2.0, 5.0, 0.0]])
    np.testing.assert_array_equal(drawdown(rows), [[0.0, 0.0, 1.0, 0.0, 5.0]])


def test_a_crash_of_60_percent_is_a_long_term_risk_of_0_6():
    rise, ruin = np.linspace(0, 1, 50), np.full(50, 0.4)
    assert stability(curves(np.concatenate([rise, ruin])), 1.0).long_term_risk == pytest.approx(0.6)


def test_a_short_dip_is_averaged_with_the_rest_of_its_tail():
    row = np.ones(100)
    row[50] = 0.4
    result = stability(curves(row), 1.0)
    assert result.long_term_risk == pytest.approx(0.6 / 5)
    assert result.short_term_risk == pytest.approx(-0.6 / 5)


def test_steady_deterioration_is_a_risk_with_the_right_sign():
    result = stability(curves(np.linspace(1, 0, 101)), 1.0)
    assert result.long_term_risk == pytest.approx(np.mean([1, 0.99, 0.98, 0.97, 0.96, 0.95]))
    assert result.short_term_risk == pytest.approx(-0.01)
    assert result.dispersion_across_time == pytest.approx(0.0)
    worse = stability(curves(np.linspace(2, 0, 101)), 1.0)
    assert worse.long_term_risk > result.long_term_risk > 0


def test_a_flat_curve_is_perfectly_stable():
    result = stability(curves(np.full((3, 50), 0.3)), 1.0)
    np.testing.assert_array_equal(values(result)[:4], 0.0)
    np.testing.assert_array_equal(values(stability(curves(np.zeros((3, 50))), 1.0)), 0.0)


def test_dispersion_across_time_is_the_mean_of_windowed_ranges():
    # changes 1, 2, 3, 8; windows of 2 have inter-quartile ranges 0.5, 0.5, 2.5
    result = stability(curves([0.0, 1.0, 3.0, 6.0, 14.0]), 1.0, window=2)
    assert result.dispersion_across_time == pytest.approx(3.5 / 3)


def test_dispersion_across_time_ignores_a_trend():
    assert stability(curves(np.arange(60.0)), 1.0).dispersion_across_time == 0.0


def test_dispersion_across_runs_is_the_range_over_seeds_averaged_over_time():
    # too short to smooth; at each update the runs are 0, 1, 2, 3 apart by 1, then by 2
    rows = np.arange(4.0)[:, None] * np.array([1.0, 2.0])
    assert stability(curves(rows), 1.0).dispersion_across_runs == pytest.approx((1.5 + 3.0) / 2)


def test_risk_across_runs_is_the_worst_twentieth_of_the_final_returns():
    final = np.random.default_rng(1).permutation(40).astype(np.float64)
    rows = np.concatenate([np.full((40, 10), 99.0), np.tile(final[:, None], 20)], axis=1)
    assert stability(curves(rows), 2.0).risk_across_runs == pytest.approx(0.5 / 2)


def test_smoothing_keeps_the_trend_and_removes_the_noise():
    phase = np.linspace(0, np.pi, 4_000)
    trend, noise = np.cos(4 * phase), np.cos(200 * phase)
    smoothed = smooth((1e3 + trend + noise)[None])[0]
    np.testing.assert_allclose(smoothed, 1e3 + trend, rtol=0, atol=1e-6)
    np.testing.assert_allclose(smooth(np.full((1, 4_000), 7.0)), 7.0, rtol=1e-9)
    short = np.random.default_rng(0).normal(size=(2, 20))
    np.testing.assert_array_equal(smooth(short), short)
    assert np.isfinite(smooth(np.random.default_rng(0).normal(size=(2, 21)))).all()


@settings(max_examples=50)
@given(CURVES, st.floats(-50, 50))
def test_shifting_the_returns_moves_only_the_risk_across_runs(rows, shift):
    before, after = (values(stability(curves(r), 2.0)) for r in (rows, rows + shift))
    np.testing.assert_allclose(after[:4], before[:4], atol=1e-6)
    np.testing.assert_allclose(after[4], before[4] + shift / 2.0, atol=1e-6)


@settings(max_examples=50)
@given(CURVES, st.floats(0.1, 10))
def test_metrics_scale_with_the_returns_and_against_the_reference(rows, factor):
    base = values(stability(curves(rows), 1.0))
    np.testing.assert_allclose(
        values(stability(curves(rows * factor), 1.0)), base * factor, atol=1e-6
    )
    np.testing.assert_allclose(values(stability(curves(rows), factor)), base / factor, atol=1e-6)


@settings(max_examples=50)
@given(CURVES)
def test_signs(rows):
    result = stability(curves(rows), 1.0)
    assert result.dispersion_across_time >= 0
    assert result.long_term_risk >= 0
    assert rows.shape[0] < 2 or result.dispersion_across_runs >= 0


def test_more_volatile_runs_score_worse_in_the_stated_direction():
    rng = np.random.default_rng(0)
    trend = np.linspace(0, 1, 200)
    calm, wild = (
        stability(curves(trend + s * rng.normal(size=(20, 200)).cumsum(axis=1)), 1.0)
        for s in (0.01, 0.1)
    )
    for metric in METRICS:
        sign = {"lower": -1, "higher": 1}[metric.better]
        assert sign * getattr(calm, metric.key) > sign * getattr(wild, metric.key), metric.key


def test_a_diverged_run_is_counted_and_leaves_the_healthy_ones_alone():
    rows = np.random.default_rng(0).normal(size=(4, 30))
    broken = rows.copy()
    broken[1, 7:] = NAN
    result = stability(curves(broken, [-1, 7, -1, -1]), 1.0)
    healthy = stability(curves(rows[[0, 2, 3]]), 1.0)
    np.testing.assert_array_equal(values(result)[:4], values(healthy)[:4])
    assert np.isnan(result.risk_across_runs)
    assert (result.runs, result.diverged) == (4, 1)
    assert any("1 of 4 runs diverged" in caveat for caveat in result.caveats)


def test_if_all_runs_diverged_nothing_is_made_up():
    result = stability(curves(np.full((2, 30), NAN), [0, 3]), 1.0)
    assert np.isnan(values(result)).all()
    assert result.diverged == 2


def test_a_single_run_has_no_dispersion_across_runs():
    result = stability(curves(np.arange(30.0)), 1.0)
    assert np.isnan(result.dispersion_across_runs)
    assert any("needs 2 healthy runs, there are 1" in caveat for caveat in result.caveats)


def test_caveats_say_where_a_tail_is_a_single_sample():
    plenty = stability(curves(np.zeros((20, 30))), 1.0)
    assert plenty.caveats == ()
    few = stability(curves(np.zeros((5, 12))), 1.0).caveats
    for words in (
        "worst of 5 runs",
        "worst of 11 changes",
        "largest of 12 drawdowns",
        "one window of 11 changes, not 20",
        "not smoothed: 12 updates",
    ):
        assert any(words in caveat for caveat in few), words


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, float("inf")])
def test_the_reference_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match=r"scale: .* must be positive and finite"):
        stability(curves([0.0, 1.0]), scale)


def test_too_short_or_no_window_is_refused():
    with pytest.raises(ValueError, match="changes need at least 2"):
        stability(curves([[1.0]]), 1.0)
    with pytest.raises(ValueError, match="window: 0"):
        stability(curves([0.0, 1.0]), 1.0, window=0)
