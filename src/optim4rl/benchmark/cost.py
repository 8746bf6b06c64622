"""What learning costs: the time of a run, what is reached in equal time, and when a level is.

Times are those of `evaluation.learning.train_runs`. All runs of a contender on a task do the same
work, so their time is the median over them, which one disturbed batch does not move.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import HEALTHY, Curves, stack
from optim4rl.evaluation.returns import area_under_curve, final_return

# A level is reached when the mean return over so many updates is there, as of final returns.
WINDOW = 20


@dataclass(frozen=True)
class Cost:
    """What a contender's runs on a task cost.

    Attributes:
        env_steps: environment steps of a run.
        seconds: of a run.
        ratio: that over the reference's.
        reached: runs that reach the reference's mean final return.
        runs: all of them.
        env_steps_to_reach: environment steps until then, the median over runs; infinite where at
            most half of them reach it.
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
    """The time of a run, of a contender with these members on a task; NaN if not measured."""
    found = stack(members).seconds
    return float("nan") if found is None else float(np.median(found))


def task_cost(members: Sequence[Curves], reference: Sequence[Curves]) -> Cost:
    """What a contender costs on a task, beside the reference."""
    curves, seconds = stack(members), run_seconds(members)
    level = float(final_return(stack(reference)).mean())
    updates = updates_to(curves, level)
    # Updates that are infinite have no place in the curve.
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
    """Updates until the mean return over the last `WINDOW` is at least the level; else infinite."""
    time = curves.returns.shape[1]
    window = min(WINDOW, time)
    sums = np.cumsum(np.pad(curves.returns, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    there = (sums[:, window:] - sums[:, :-window]) / window >= level
    return np.where(there.any(axis=1), window + there.argmax(axis=1), np.inf)


def area_in_time(members: Sequence[Curves], seconds: float) -> Float[np.ndarray, "member seed"]:
    """AUC of what runs get done in so many seconds, at least one update; all of a shorter run."""
    share = min(1.0, seconds / run_seconds(members))
    return np.stack([area_under_curve(first_part(curves, share)) for curves in members])


def first_part(curves: Curves, share: float) -> Curves:
    """The first updates of every run, at least one."""
    time = max(1, int(share * curves.env_steps.size + 1e-9))
    alive = curves.diverged_at >= time
    return replace(
        curves,
        returns=curves.returns[:, :time],
        diverged_at=np.where(alive, HEALTHY, curves.diverged_at),
        env_steps=curves.env_steps[:time],
    )
