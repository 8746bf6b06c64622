"""The one test: parity with scipy, laws about failed runs, and how often it is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from optim4rl.evaluation.returns import compare
from optim4rl.evaluation.significance import difference_error, welch_test

SIZES = st.integers(3, 20)


def mean(scores):
    return float(scores.mean())


def side(values):
    """One task, one seed: every value is a meta-seed of its own."""
    return np.asarray(values, np.float64).reshape(1, -1, 1)


@given(st.integers(0, 999), SIZES, SIZES)
def test_of_two_samples_means_it_is_scipys(seed, n, m):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_t(2, size=n), 0.5 + 3 * rng.standard_t(2, size=m)
    expected = stats.ttest_ind(x, y, equal_var=False)
    found = welch_test(side(x), side(y), mean)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.degrees == pytest.approx(expected.df)
    assert found.difference == pytest.approx(x.mean() - y.mean())
    if n == m == 3:  # Of three none is cut.
        assert welch_test(side(x), side(y)).p == pytest.approx(expected.pvalue)


def test_near_scipys_test_of_trimmed_means_where_there_are_many():
    """Yuen's test, of independent runs: the jackknife's variance is that of Winsor's, nearly."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), 0.25 + rng.normal(size=160)
    expected = stats.ttest_ind(x, y, equal_var=False, trim=0.25)
    assert welch_test(side(x), side(y)).p == pytest.approx(expected.pvalue, rel=0.2)


@given(st.integers(0, 999))
def test_of_shared_seeds_it_is_students_paired_test(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 1, 1, 6))
    expected = stats.ttest_rel(x.ravel(), y.ravel()).pvalue
    assert welch_test(x, y, mean).p == pytest.approx(expected)


def test_it_adds_up_the_luck_of_meta_seeds_and_of_seeds():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 8)), rng.normal(size=(2, 1, 8))
    parts = [x.mean((0, 2)), (x.mean((0, 1)) - y.mean((0, 1)))]
    fewer = [x.mean((0, 2)), x.mean((0, 1)), y[..., :5].mean((0, 1))]
    for other, luck in ((y, parts), (y[..., :5], fewer)):
        variances = np.array([part.var(ddof=1) / part.size for part in luck])
        freedom = np.array([part.size - 1 for part in luck])
        error = difference_error(x, other, mean)
        assert error.variance == pytest.approx(variances.sum())
        assert error.degrees == pytest.approx(variances.sum() ** 2 / (variances**2 / freedom).sum())
        t = (x.mean() - other.mean()) / math.sqrt(error.variance)
        p = welch_test(x, other, mean).p
        assert p == pytest.approx(2 * stats.t.sf(abs(t), error.degrees))


@pytest.mark.parametrize("lead", [0.0, 1.0])
@pytest.mark.parametrize("failed", [-1.0, -10.0, -1e6])
def test_how_badly_a_run_or_a_meta_seed_failed_decides_nothing(lead, failed):
    """The audit's case: ten meta-seeds a side, one of which comes to nothing."""
    rng = np.random.default_rng(3)
    x, y = lead + rng.normal(size=(1, 10, 8)), rng.normal(size=(1, 10, 8))
    worst = y.copy()
    worst[0, 0] = np.sort(y, axis=None)[0]
    y[0, 0] = 10 * failed
    assert welch_test(x, y).p == pytest.approx(welch_test(x, worst).p)
    assert compare(x, y, "X", "Y", resamples=200).verdict == ("clear" if lead else "not clear")


def test_one_failed_meta_seed_of_three_makes_nothing_clear():
    x, y = np.ones((1, 3, 8)), np.ones((1, 3, 8))
    x += 0.01 * np.random.default_rng(0).normal(size=x.shape)
    y[0, 0] = -100.0
    result = compare(x, y, "X", "Y", resamples=200)
    assert result.verdict == "not clear"
    assert result.test.p > 0.2


@pytest.mark.parametrize("sizes", [(2, 1), (2, 2), (10, 2), (1, 2)])
def test_two_meta_seeds_give_no_test(sizes):
    x, y = (np.full((1, n, 8), float(n)) + np.arange(8) for n in sizes)
    x[0, 0] += 1e-3
    assert welch_test(x + 100, y).p == 1.0
    said = compare(
        x + 100 + np.arange(sizes[0])[:, None],
        y - np.arange(sizes[1])[:, None],
        "X",
        "Y",
        resamples=200,
    )
    assert said.verdict == "not clear"
    assert "two meta-seeds do not say how much meta-seeds differ" in said.sentence


def test_scores_without_any_spread():
    one = np.ones((1, 3, 4))
    assert welch_test(one, 0 * one).p == 0.0
    assert welch_test(one, one).p == 1.0
    assert welch_test(one[:, :1, :1], 0 * one[:, :1, :1]).p == 1.0


def drawn(rng, kind, shape):
    z = rng.standard_t(3, size=shape) if kind == "heavy" else rng.normal(size=shape)
    return np.where(rng.random(shape) < 0.08, -8.0, z) if kind == "failing" else z


@pytest.mark.parametrize("kind", ["normal", "heavy", "failing"])
@pytest.mark.parametrize("sides", [(3, 1), (10, 1), (4, 4), (1, 1)])
@pytest.mark.parametrize("spreads", [(1.0, 1.0, 0.5), (1.0, 0.1, 0.01), (0.0, 0.0, 1.0)])
def test_it_is_wrong_at_most_as_often_as_it_says(sides, kind, spreads):
    of_meta_seed, of_seed, of_run = spreads
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(250):
        luck = of_seed * drawn(rng, kind, (1, 1, 8))
        x, y = (
            (n > 1) * of_meta_seed * drawn(rng, kind, (1, n, 1))
            + luck
            + of_run * drawn(rng, kind, (1, n, 8))
            for n in sides
        )
        wrong += welch_test(x, y).p <= 0.05
    assert wrong / 250 <= 0.09
