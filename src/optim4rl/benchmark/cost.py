"""The cost of learning: seconds of a run, scores in equal time, and time to reach a return.

`evaluation.learning.train_runs` measures the times. All runs of a contender on a task do the same
work, so we report their median time: one disturbed batch does not change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import HEALTHY, Curves, stack
from optim4rl.evaluation.returns import area_under_curve, final_return

# A level counts as reached if the mean return over this many updates is at least the level.
# Final returns are means over as many updates.
WINDOW = 20


@dataclass(frozen=True)
class Cost:
    """Hold the cost of a contender's runs on a task.

    Attributes:
        env_steps: environment steps of a run.
        seconds: time of a run in seconds.
        ratio: `seconds` divided by the reference's.
        reached: number of runs that reach the reference's mean final return.
        runs: number of all runs.
        env_steps_to_reach: environment steps to reach it, median over runs; infinite where at most
            half of the runs reach it.
        seconds_to_reach: the same in seconds.
    """

    env_steps: int
    seconds: float
    ratio: float
    reached: int
    runs: int
    env_steps_to_reach: float
    seconds_to_reach: float


def run_seconds(members: Sequence[Curves]) -> float:
    """Return the median seconds of a run of these members on a task; NaN if not measured."""
    found = stack(members).seconds
    return float("nan") if found is None else float(np.median(found))


def task_cost(members: Sequence[Curves], reference: Sequence[Curves]) -> Cost:
    """Compute a contender's cost on a task, relative to the reference."""
    curves, seconds = stack(members), run_seconds(members)
    level = float(final_return(stack(reference)).mean())
    updates = updates_to(curves, level)
    # The median must be one of the values: infinite ones cannot be interpolated.
    middle = float(np.quantile(updates, 0.5, method="higher"))
    share = middle / curves.env_steps.size
    return Cost(
        env_steps=int(curves.env_steps[-1]),
        seconds=seconds,
        ratio=seconds / run_seconds(reference),
        reached=int(np.isfinite(updates).sum()),
        runs=updates.size,
        env_steps_to_reach=share * float(curves.env_steps[-1]),
        seconds_to_reach=share * seconds,
    )


def updates_to(curves: Curves, level: float) -> Float[np.ndarray, " run"]:
    """Return updates until the mean over `WINDOW` updates reaches the level; infinite if never."""
    time = curves.returns.shape[1]
    window = min(WINDOW, time)
    sums = np.cumsum(np.pad(curves.returns, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    there = (sums[:, window:] - sums[:, :-window]) / window >= level
    return np.where(there.any(axis=1), window + there.argmax(axis=1), np.inf)


def area_in_time(members: Sequence[Curves], seconds: float) -> Float[np.ndarray, "member seed"]:
    """Return the AUC of each run's first `seconds`: at least one update, at most all of it."""
    share = min(1.0, seconds / run_seconds(members))
    return np.stack([area_under_curve(first_part(curves, share)) for curves in members])


def first_part(curves: Curves, share: float) -> Curves:
    """Return the first `share` of every run's updates, at least one update."""
    time = max(1, int(share * curves.env_steps.size + 1e-9))
    # The row of a run that diverged before its first episode ended has no number at all.
    alive = (curves.diverged_at >= time) & ~np.isnan(curves.returns[:, 0])
    return replace(
        curves,
        returns=curves.returns[:, :time],
        diverged_at=np.where(alive, HEALTHY, np.minimum(curves.diverged_at, time - 1)),
        env_steps=curves.env_steps[:time],
    )
