"""Pictures of evaluations and of meta-training."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from optim4rl.evaluation.curves import Curves

# Okabe and Ito's palette tells apart for every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def plot_curves(title: str, curves: Mapping[str, Sequence[Curves]], path: Path) -> None:
    """Learning curves as SVG: mean over all runs, and the range of the middle half of them.

    Args:
        title: above the picture.
        curves: optimizer -> its curves, one for each meta-seed. An optimizer whose name ends in
            "untrained" is drawn thin and dashed.
        path: file to write.
    """
    with _figure(path, columns=1) as (axes,):
        for index, (name, found) in enumerate(curves.items()):
            control = name.endswith("untrained")
            thinned = [c.thin(min(130, c.returns.shape[1])) for c in found]
            returns = np.concatenate([c.returns for c in thinned])
            steps = thinned[0].env_steps
            colour = "0.45" if control else _COLOURS[index % len(_COLOURS)]
            axes.plot(
                steps,
                returns.mean(axis=0),
                label=name,
                color=colour,
                lw=1.2 if control else 2.0,
                ls="--" if control else "-",
            )
            low, high = np.quantile(returns, (0.25, 0.75), axis=0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(title=title, xlabel="environment steps", ylabel="episode return")
        axes.legend(frameon=False, loc="lower right")


def plot_training(log: Path, path: Path) -> None:
    """A run's progress as SVG: the agents' returns and the meta-gradient's norm by iteration.

    Args:
        log: the `progress.csv` of a run.
        path: file to write.
    """
    with log.open() as file:
        rows = list(csv.DictReader(file))
    columns = {
        name: np.array([float(row[name] or "nan") for row in rows])
        for name in (rows[0] if rows else ())
    }
    returns = {name: x for name, x in columns.items() if name.startswith("return_")}
    with _figure(path, columns=2) as (left, right):
        for (name, values), colour in zip(returns.items(), cycle(_COLOURS)):
            iterations = columns["iteration"]
            left.plot(iterations, values, color=colour, lw=0.6, alpha=0.4)
            left.plot(
                iterations, _smooth(values), color=colour, lw=2.0, label=name[len("return_") :]
            )
        left.set(title="agents of all ages", xlabel="meta-iteration", ylabel="episode return")
        if returns:
            left.legend(frameon=False)
            right.plot(columns["iteration"], columns["meta_gradient_norm"], color="0.3", lw=0.8)
        right.set(yscale="log", xlabel="meta-iteration", ylabel="norm of the meta-gradient")


def _smooth(values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Means over the last twentieth of the run, of those that are there."""
    window = max(1, len(values) // 20)
    known = np.isfinite(values)
    sums, counts = (np.cumsum(x) for x in (np.where(known, values, 0.0), known))
    for x in (sums, counts):
        x[window:] = x[window:] - x[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@contextmanager
def _figure(path: Path, columns: int) -> Iterator[Any]:
    """Axes side by side, written to the file in the end: the same runs give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "optim4rl", "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(8.0 if columns == 1 else 11.0, 4.2), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield axes
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(alpha=0.25)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
