"""Results of the identity experiment, and their form as JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Histogram:
    """Histogram of log10|g| of non-zero gradients, with the share of exact zeros beside it.

    Attributes:
        label: source of the gradients.
        edges: bin edges in log10|g|, one more than there are bins.
        share: share of the non-zero gradients in each bin.
        zeros: share of exact zeros among all.
        decades: decades between the 1st and 99th percentile of non-zero |g|.
    """

    label: str
    edges: Float[np.ndarray, " edges"]
    share: Float[np.ndarray, " bins"]
    zeros: float
    decades: float


@dataclass(frozen=True)
class IdentityRow:
    """One network of the experiment: an input processing, an output form, a learning-rate schedule.

    Attributes:
        input: name of the processing of the input ("sign_log", "raw", "symlog").
        output: name of the output form ("sign_exp", "linear", "symexp").
        schedule: "constant" or "annealed".
        learning_rate: the best of the grid, by accuracy on the tuning share of the data; NaN in a
            mean over recordings that chose different ones.
        online: accuracy on all targets while training, as in the paper.
        online_nonzero: the same on targets that are not exactly zero.
        frozen: accuracy of the frozen network on held-out gradients, all targets.
        frozen_nonzero: the same on targets that are not exactly zero.
        by_decade: frozen accuracy on non-zero targets by decade of |g|: exponent d -> accuracy on
            `10^d <= |g| < 10^(d+1)`.
        curve: online accuracy (all targets) over training, thinned to at most 200 points.
        seeds: number of seeds that each accuracy is averaged over.
        spread: lowest and highest value over seeds, for each of the four accuracies.
        recording: number of the recording, from 0.
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
    recording: int = 0


@dataclass(frozen=True)
class IdentityResult:
    """The whole experiment.

    Attributes:
        task: source of the recorded gradients: the task and the optimizer.
        rows: one row for each recording and network.
        histograms: the recorded agent-gradients and those of a supervised network.
        settings: sizes and settings of the experiment.
    """

    task: str
    rows: tuple[IdentityRow, ...]
    histograms: tuple[Histogram, ...]
    settings: Mapping[str, Any]


ACCURACIES = ("online", "online_nonzero", "frozen", "frozen_nonzero")


def networks(rows: Sequence[IdentityRow]) -> dict[tuple[str, str, str], list[IdentityRow]]:
    """Return the rows of each (input, output, schedule), a row for each recording."""
    found: dict[tuple[str, str, str], list[IdentityRow]] = {}
    for row in rows:
        found.setdefault((row.input, row.output, row.schedule), []).append(row)
    return found


def over_recordings(rows: Sequence[IdentityRow]) -> tuple[IdentityRow, ...]:
    """Return each network's means over the recordings; the spread is over all their seeds."""
    return tuple(_mean(of_network) for of_network in networks(rows).values())


def _mean(rows: Sequence[IdentityRow]) -> IdentityRow:
    rates = {row.learning_rate for row in rows}
    means: dict[str, Any] = {
        name: float(np.mean([getattr(row, name) for row in rows])) for name in ACCURACIES
    }
    spreads = {name: [row.spread[name] for row in rows] for name in rows[0].spread}
    decades = sorted({decade for row in rows for decade in row.by_decade})
    return dataclasses.replace(
        rows[0],
        learning_rate=rates.pop() if len(rates) == 1 else math.nan,
        **means,
        by_decade={
            decade: float(np.mean([r.by_decade[decade] for r in rows if decade in r.by_decade]))
            for decade in decades
        },
        curve=np.mean([row.curve for row in rows], axis=0),
        spread={
            name: (float(np.min([low for low, _ in x])), float(np.max([high for _, high in x])))
            for name, x in spreads.items()
        },
    )


def to_json(result: "IdentityResult | tuple[IdentityRow, ...]") -> Any:
    """Return the result, or some of its rows, as plain JSON values."""

    def plain(value: Any) -> Any:
        return vars(value) if dataclasses.is_dataclass(value) else value.tolist()

    return json.loads(json.dumps(result, default=plain))


def rows_from_json(values: Sequence[Mapping[str, Any]]) -> tuple[IdentityRow, ...]:
    """Read rows that `to_json` wrote."""
    return tuple(
        IdentityRow(
            **{
                **row,
                "curve": np.asarray(row["curve"], np.float64),
                "by_decade": {int(decade): share for decade, share in row["by_decade"].items()},
                "spread": {name: tuple(ends) for name, ends in row["spread"].items()},
            }
        )
        for row in values
    )


def from_json(values: Mapping[str, Any]) -> IdentityResult:
    """Read a result that `to_json` wrote."""
    histograms = tuple(
        Histogram(**{**x, **{name: np.asarray(x[name], np.float64) for name in ("edges", "share")}})
        for x in values["histograms"]
    )
    rows = rows_from_json(values["rows"])
    return IdentityResult(values["task"], rows, histograms, values["settings"])
