"""Learning curves: what they refuse, how episodes become returns, what thinning keeps."""

import jaxtyping
import numpy as np
import polars as pl
import pytest
from hypothesis import given, strategies as st

from optim4rl.evaluation.curves import Curves, stack

NAN = float("nan")


def curves(rows, diverged_at=None, env_steps=None):
    returns = np.asarray(rows, dtype=np.float64)
    runs, time = returns.shape
    return Curves(
        returns,
        np.asarray([-1] * runs if diverged_at is None else diverged_at),
        np.arange(1, time + 1) * 10 if env_steps is None else np.asarray(env_steps),
    )


def from_episodes(total, count, diverged_at):
    total = np.asarray(total, dtype=np.float64)
    steps = np.arange(total.shape[1])
    return Curves.from_episodes(total, np.asarray(count), np.asarray(diverged_at), steps)


@pytest.mark.parametrize(
    ("rows", "diverged_at", "env_steps", "message"),
    [
        ([[1.0, 2.0]], None, [5, 5], "strictly increasing"),
        ([[1.0, 2.0]], None, [-1, 5], "non-negative"),
        ([[1.0, 2.0]], [2], None, "update below 2"),
        ([[1.0, 2.0]], [-2], None, "must be -1"),
        ([[0.0, 0.0], [1.0, NAN]], None, None, "run 1 is nan at update 1, but its diverged_at is"),
        ([[1.0, np.inf]], None, None, "run 0 is inf at update 1"),
        ([[1.0, NAN, NAN]], [2], None, "run 0 is nan at update 1"),
        ([[1.0, NAN, 0.0]], [1], None, "carries numbers after it"),
        ([[1.0, np.inf, np.inf]], [1], None, "must be NaN from there on"),
        (np.zeros((0, 3)), [], None, r"returns: shape \(0, 3\)"),
    ],
)
def test_contradictions_are_named(rows, diverged_at, env_steps, message):
    if diverged_at == []:
        diverged_at = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        curves(rows, diverged_at, env_steps)


def test_shapes_are_checked_without_annotations_being_enforced():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"diverged_at: shape \(2,\) must be \(1,\)"):
            curves([[1.0, 2.0]], [-1, -1])
        with pytest.raises(ValueError, match=r"env_steps: shape \(1,\) must be \(2,\)"):
            curves([[1.0, 2.0]], env_steps=[1])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_diverged_run_keeps_its_length():
    result = curves([[1.0, 2.0, 3.0], [1.0, NAN, NAN]], [-1, 1])
    assert result.returns.shape == (2, 3)
    np.testing.assert_array_equal(result.diverged, [False, True])


def test_return_is_the_mean_of_the_episodes_that_ended_and_carries_on():
    result = from_episodes([[0.0, 6.0, 0.0, 0.0, 8.0]], [[0, 3, 0, 0, 2]], [-1])
    np.testing.assert_array_equal(result.returns, [[2.0, 2.0, 2.0, 2.0, 4.0]])


def test_what_a_diverged_run_reports_afterwards_is_ignored():
    result = from_episodes([[1.0, 4.0, 9.0, NAN]], [[1, 2, 3, 1]], [2])
    np.testing.assert_array_equal(result.returns, [[1.0, 2.0, NAN, NAN]])


def test_divergence_before_any_episode_ended_is_an_empty_row_not_an_error():
    result = from_episodes([[0.0, 0.0, 5.0], [1.0, 1.0, 1.0]], [[0, 0, 1], [1, 1, 1]], [2, -1])
    np.testing.assert_array_equal(result.returns, [[NAN, NAN, NAN], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(result.diverged_at, [2, -1])


def test_a_healthy_run_without_an_episode_is_refused():
    with pytest.raises(ValueError, match=r"runs \[1\] finished no episode in 2 updates"):
        from_episodes([[1.0, 0.0], [0.0, 0.0]], [[1, 0], [0, 0]], [-1, -1])


def test_a_broken_sum_in_a_run_called_healthy_is_refused():
    with pytest.raises(ValueError, match="run 0 is nan at update 1"):
        from_episodes([[1.0, NAN]], [[1, 1]], [-1])


@given(st.data())
def test_carrying_on_agrees_with_a_loop(data):
    time = data.draw(st.integers(1, 12))
    count = data.draw(st.lists(st.integers(0, 2), min_size=time, max_size=time).filter(any))
    total = [float(10 * i + n) if n else 0.0 for i, n in enumerate(count)]
    expected, value = [], None
    for s, n in zip(total, count, strict=True):
        value = s / n if n else value
        expected.append(value)
    first = next(v for v in expected if v is not None)
    result = from_episodes([total], [count], [-1])
    np.testing.assert_allclose(result.returns[0], [first if v is None else v for v in expected])


def test_thinning_averages_bins_and_keeps_divergence():
    full = curves(
        [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0], [1.0, 3.0, 5.0, NAN, NAN, NAN], [NAN] * 6], [-1, 3, 2]
    )
    thin = full.thin(3)
    np.testing.assert_array_equal(
        thin.returns, [[2.0, 6.0, 10.0], [2.0, NAN, NAN], [NAN, NAN, NAN]]
    )
    np.testing.assert_array_equal(thin.diverged_at, [-1, 1, 1])
    np.testing.assert_array_equal(thin.env_steps, [15, 35, 55])
    assert full.thin(6) is full
    with pytest.raises(ValueError, match="points: 0"):
        full.thin(0)


@given(st.integers(1, 40), st.integers(1, 45))
def test_thinning_conserves_the_sum(time, points):
    values = np.random.default_rng(time).normal(size=(1, time))
    thin = curves(values).thin(points)
    kept = min(points, time)
    widths = np.diff(np.arange(kept + 1) * time // kept)
    assert thin.returns.shape == (1, kept)
    np.testing.assert_allclose((thin.returns * widths).sum(), values.sum(), atol=1e-12)


def test_stack_puts_runs_below_one_another():
    result = stack([curves([[1.0, 2.0]]), curves([[3.0, NAN]], [1])])
    np.testing.assert_array_equal(result.returns, [[1.0, 2.0], [3.0, NAN]])
    np.testing.assert_array_equal(result.diverged_at, [-1, 1])
    with pytest.raises(ValueError, match=r"parts\[1\]\.env_steps differ"):
        stack([curves([[1.0, 2.0]]), curves([[1.0, 2.0]], env_steps=[1, 2])])
    with pytest.raises(ValueError, match="nothing to stack"):
        stack([])


def test_table_is_long_and_labelled():
    table = curves([[1.0, 2.0], [3.0, NAN]], [-1, 1]).to_table(optimizer="adam", meta_seed=0)
    assert table.columns == [
        "optimizer", "meta_seed", "run", "update", "env_steps", "return", "diverged",
    ]  # fmt: skip
    assert table.height == 4
    assert table["optimizer"].unique().to_list() == ["adam"]
    assert table.filter(pl.col("diverged")).select("run", "update").rows() == [(1, 1)]
    assert table.filter(~pl.col("diverged"))["return"].to_list() == [1.0, 2.0, 3.0]
    assert table["return"].is_nan().sum() == 1


def test_what_runs_took_and_scored_is_stacked_and_taken_with_them():
    first = Curves(np.zeros((2, 3)), np.full(2, -1), np.arange(1, 4), np.array([1.0, 2.0]))
    second = Curves(np.ones((1, 3)), np.full(1, -1), np.arange(1, 4), np.array([3.0]))
    whole = stack([first, second])
    np.testing.assert_array_equal(whole.greedy, [1.0, 2.0, 3.0])
    assert whole.seconds is None
    some = whole.take(np.array([False, True, True]))
    np.testing.assert_array_equal(some.greedy, [2.0, 3.0])
    np.testing.assert_array_equal(some.returns[:, 0], [0.0, 1.0])
    assert (
        stack([first, Curves(second.returns, second.diverged_at, second.env_steps)]).greedy is None
    )
    with pytest.raises(ValueError, match=r"greedy: shape \(2,\) must be \(1,\)"):
        with_jaxtyping_off(second, first.greedy)


def with_jaxtyping_off(curves, greedy):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        Curves(curves.returns, curves.diverged_at, curves.env_steps, greedy)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
