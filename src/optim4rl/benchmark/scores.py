"""Scores of runs by name. A suite's score chooses settings and is in the suite's own table."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, final_return

Score = Literal["auc", "final_return", "greedy_return"]


def greedy_return(curves: Curves) -> Float[np.ndarray, " run"]:
    """Return each run's mean return over greedy episodes of the finished agent.

    Raises:
        ValueError: the runs have no greedy episodes.
    """
    if curves.greedy is None:
        raise ValueError("greedy = None: runs of a task with greedy_episodes are needed")
    return curves.greedy


SCORES: Mapping[Score, Callable[[Curves], Float[np.ndarray, " run"]]] = {
    "auc": area_under_curve,
    "final_return": final_return,
    "greedy_return": greedy_return,
}
# Names of the scores on pages, and in sentences that explain them.
SCORE_NAMES: Mapping[Score, str] = {
    "auc": "AUC",
    "final_return": "final return",
    "greedy_return": "greedy return",
}
SCORE_WORDS: Mapping[Score, str] = {
    "auc": "AUC, the mean return over a run,",
    "final_return": "final return",
    "greedy_return": "mean return of greedy episodes after training",
}
