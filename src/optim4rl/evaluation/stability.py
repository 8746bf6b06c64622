"""Training stability: five metrics of learning curves after Chan et al. 2020 (arXiv 1912.05663).

Every metric is divided by a reference scale of the task that all variants share, for example tuned
Adam's final return minus the untrained policy's. A curve's own range is no substitute: it turns the
sign of a deteriorating run and is zero for a flat run. Metrics that need whole curves leave
diverged runs out, and report their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import final_return

ALPHA = 0.05
# Changes slower than ten cycles a run are trend, faster changes are noise. On the paper's curves of
# about 2,000 points this is the cutoff of the metrics' source, 0.01 of the Nyquist frequency.
CYCLES_PER_RUN = 10
FILTER_ORDER = 8


@dataclass(frozen=True)
class Metric:
    """Say how to read one field of `Stability`.

    Attributes:
        key: The field's name.
        label: Heading for tables.
        better: The better direction.
        definition: One line.
    """

    key: str
    label: str
    better: Literal["lower", "higher"]
    definition: str


METRICS = (
    Metric(
        "dispersion_across_time",
        "Dispersion across time",
        "lower",
        "inter-quartile range of the changes from update to update, in sliding windows",
    ),
    Metric(
        "short_term_risk",
        "Short-term risk across time",
        "higher",
        "mean of the worst 5 % of the changes from update to update; at most about 0",
    ),
    Metric(
        "long_term_risk",
        "Long-term risk across time",
        "lower",
        "mean of the largest 5 % of the drawdowns, the falls below the highest return so far",
    ),
    Metric(
        "dispersion_across_runs",
        "Dispersion across runs",
        "lower",
        "inter-quartile range over runs of the smoothed curves, averaged over updates",
    ),
    Metric(
        "risk_across_runs",
        "Risk across runs",
        "higher",
        "mean of the worst 5 % of the runs' final returns",
    ),
)


@dataclass(frozen=True)
class Stability:
    """Hold the five metrics, in units of the reference scale; `METRICS` explains them.

    Attributes:
        dispersion_across_time: Mean over healthy runs; lower is better.
        short_term_risk: Mean over healthy runs; higher is better.
        long_term_risk: Mean over healthy runs; lower is better.
        dispersion_across_runs: Over healthy runs; lower is better. NaN with fewer than two.
        risk_across_runs: Over all runs; higher is better. NaN if a diverged run is in the tail.
        runs: Number of runs.
        diverged: Number of runs that diverged; always show it beside the metrics.
        caveats: Limits of the figures, one sentence each.
    """

    dispersion_across_time: float
    short_term_risk: float
    long_term_risk: float
    dispersion_across_runs: float
    risk_across_runs: float
    runs: int
    diverged: int
    caveats: tuple[str, ...]


def stability(curves: Curves, scale: float, *, window: int = 20) -> Stability:
    """Measure the stability of the runs of one optimizer on one task.

    Args:
        curves: At least two updates long.
        scale: Reference scale of the task in units of return, the same for all optimizers.
        window: Number of changes in a window of the dispersion across time.

    Raises:
        ValueError: The scale is not positive and finite, the window not positive, or the curves
            too short.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: {scale} must be positive and finite")
    if window < 1:
        raise ValueError(f"window: {window} must be at least 1")
    if curves.env_steps.size < 2:
        raise ValueError("curves: 1 update is too short; changes need at least 2")
    returns = curves.returns[~curves.diverged].astype(np.float64) / scale
    changes = np.diff(returns, axis=1)
    return Stability(
        dispersion_across_time=_mean_over_runs(_windowed_iqr(changes, window)),
        short_term_risk=_mean_over_runs(lower_cvar(changes)),
        long_term_risk=_mean_over_runs(upper_cvar(drawdown(returns))),
        dispersion_across_runs=_dispersion_across_runs(returns),
        risk_across_runs=float(lower_cvar(final_return(curves)[None])[0] / scale),
        runs=curves.diverged.size,
        diverged=int(curves.diverged.sum()),
        caveats=tuple(_caveats(curves, window)),
    )


def drawdown(returns: Float[np.ndarray, "run time"]) -> Float[np.ndarray, "run time"]:
    """Return how far each value lies below the highest one so far; never negative."""
    fall: Float[np.ndarray, "run time"] = np.maximum.accumulate(returns, axis=1) - returns
    return fall


def lower_cvar(values: Float[np.ndarray, "run sample"]) -> Float[np.ndarray, " run"]:
    """Return the mean of the lowest 5 % of each row, the conditional value at risk.

    The tail holds 5 % of the samples, rounded up: with 20 or fewer it is the minimum. NaN counts
    as lowest, so that a row with a NaN gives NaN.
    """
    tail = math.ceil(round(ALPHA * values.shape[1], 9))
    lowest = np.sort(values, axis=1)[:, :tail].mean(axis=1)
    return np.where(np.isnan(values).any(axis=1), np.nan, lowest)


def upper_cvar(values: Float[np.ndarray, "run sample"]) -> Float[np.ndarray, " run"]:
    """Return the mean of the highest 5 % of each row; see `lower_cvar`."""
    return -lower_cvar(-values)


def smooth(returns: Float[np.ndarray, "run time"]) -> Float[np.ndarray, "run time"]:
    """Remove changes faster than ten cycles a run by a Butterworth filter, forward and backward.

    The filter has second-order sections, because the transfer-function form of an 8th-order filter
    loses its digits at low cutoffs. A curve of 20 updates or fewer has no faster changes and is
    returned unchanged.
    """
    time = returns.shape[1]
    if time <= 2 * CYCLES_PER_RUN:
        return returns
    sections = scipy.signal.butter(FILTER_ORDER, 2 * CYCLES_PER_RUN / time, output="sos")
    # Mirror the ends: the default, an odd extension, would tie each end to a single noisy value.
    smoothed: Float[np.ndarray, "run time"] = scipy.signal.sosfiltfilt(
        sections, returns, axis=1, padtype="even", padlen=time - 1
    )
    return smoothed


def _windowed_iqr(changes: np.ndarray, window: int) -> np.ndarray:
    width = min(window, changes.shape[1])
    windows = np.lib.stride_tricks.sliding_window_view(changes, width, axis=1)
    spread: np.ndarray = _iqr(windows, axis=2).mean(axis=1)
    return spread


def _dispersion_across_runs(returns: np.ndarray) -> float:
    if returns.shape[0] < 2:
        return float("nan")
    return float(_iqr(smooth(returns), axis=0).mean())


def _iqr(values: np.ndarray, axis: int) -> np.ndarray:
    upper, lower = np.quantile(values, [0.75, 0.25], axis=axis)
    spread: np.ndarray = upper - lower
    return spread


def _mean_over_runs(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _caveats(curves: Curves, window: int) -> Iterator[str]:
    runs, time = curves.returns.shape
    diverged = int(curves.diverged.sum())
    needed = round(1 / ALPHA)
    if diverged:
        yield (
            f"{diverged} of {runs} runs diverged: they are in none of the first four metrics, and "
            "the risk across runs is undefined"
        )
    if runs - diverged < 2:
        yield f"dispersion across runs needs 2 healthy runs, there are {runs - diverged}"
    if runs < needed and not diverged:
        yield f"risk across runs is the worst of {runs} runs: a 5 % tail needs {needed}"
    if time - 1 < needed:
        yield f"short-term risk is the worst of {time - 1} changes: a 5 % tail needs {needed}"
    if time < needed:
        yield f"long-term risk is the largest of {time} drawdowns: a 5 % tail needs {needed}"
    if time - 1 < window:
        yield f"dispersion across time uses one window of {time - 1} changes, not {window}"
    if time <= 2 * CYCLES_PER_RUN:
        yield f"dispersion across runs is not smoothed: {time} updates are too few"
