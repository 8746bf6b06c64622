"""The identity experiment: can a small RNN reproduce the gradients that it is shown?

Lan et al. 2024, section 4.1: a recurrent network learns `y = x` on agent-gradients, with and without
gradient processing. The paper's figure confounds input processing with output form, counts exact
zeros as hits and measures while training; this module separates all of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class IdentityRow:
    """One network of the experiment: an input processing, an output form, a learning-rate schedule.

    Attributes:
        input: name of the processing of the input ("sign_log", "raw", "symlog").
        output: name of the output form ("sign_exp", "linear", "symexp").
        schedule: "constant" or "annealed".
        learning_rate: the best of the grid, by the accuracy on the tuning share of the data.
        online: accuracy on all targets while training, as the paper has it.
        online_nonzero: the same on targets that are not exactly zero.
        frozen: accuracy of the frozen network on held-out gradients, all targets.
        frozen_nonzero: the same on targets that are not exactly zero.
        by_decade: frozen accuracy on non-zero targets by decade of |g|: exponent d -> accuracy on
            `10^d <= |g| < 10^(d+1)`.
        curve: online accuracy (all targets) over training, thinned to at most 200 points.
        seeds: number of seeds that each figure is the mean of.
        spread: lowest and highest over seeds, for each of the four accuracies.
    """

    input: str
    output: str
    schedule: str
    learning_rate: float
    online: float
    online_nonzero: float
    frozen: float
    frozen_nonzero: float
    by_decade: Mapping[int, float]
    curve: Float[np.ndarray, " points"]
    seeds: int
    spread: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Histogram:
    """Histogram of log10|g| of non-zero gradients, with the share of exact zeros beside it.

    Attributes:
        label: whose gradients.
        edges: bin edges in log10|g|.
        share: share of the non-zero gradients in each bin.
        zeros: share of exact zeros among all.
        decades: decades between the 1st and 99th percentile of non-zero |g|.
    """

    label: str
    edges: Float[np.ndarray, " bins+1"]
    share: Float[np.ndarray, " bins"]
    zeros: float
    decades: float


@dataclass(frozen=True)
class IdentityResult:
    """The whole experiment.

    Attributes:
        task: whose gradients were recorded, and with which optimizer.
        rows: one for each network.
        histograms: the recorded agent-gradients and those of a supervised network.
        settings: sizes and settings of the experiment.
    """

    task: str
    rows: tuple[IdentityRow, ...]
    histograms: tuple[Histogram, ...]
    settings: Mapping[str, Any]
